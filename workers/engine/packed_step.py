"""One forward pass over packed tokens: rows that decode, then pieces of prompts, each with what it sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workers.engine.decode_part import DecodePart, FixedShape, Row, decode_part
from workers.engine.kv_stack import Stacks
from workers.engine.prefill_part import Piece, PrefillPart, prefill_part


@dataclass
class PackedStep:
    """The tokens of one step and the index tensors by which they attend; built once, used by every layer."""

    ids: Tensor  # (tokens,)
    positions: Tensor  # (tokens,)
    last: Tensor  # tokens whose next token is wanted: all rows, and the end of each own piece
    stacks: Stacks
    decode: DecodePart | None
    prefill: PrefillPart | None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As ``attention.Step`` says."""
        rows = self.decode.rows if self.decode else 0
        outs = []
        if self.decode:
            outs.append(self.decode.attend(self.stacks, layer, query[:rows], key[:rows], value[:rows]))
        if self.prefill:
            outs.append(self.prefill.attend(self.stacks, layer, query[rows:], key[rows:], value[rows:]))
        return (torch.cat(outs) if len(outs) > 1 else outs[0]).to(query.dtype)


def pack(
    rows: list[Row],
    pieces: list[Piece],
    stacks: Stacks,
    device: torch.device,
    fixed: FixedShape | None = None,
) -> PackedStep:
    """Lay out a step's tokens: rows first, then pieces, those over one prefix next to each other."""
    pieces = sorted(pieces, key=lambda piece: piece.order)
    ids = [row.token for row in rows] + [token for piece in pieces for token in piece.ids]
    positions = [np.array([row.position for row in rows], dtype=np.int64)]
    positions += [np.arange(len(piece.ids)) + piece.position for piece in pieces]
    return PackedStep(
        ids=torch.tensor(ids, device=device),
        positions=torch.from_numpy(np.concatenate(positions)).to(device),
        last=torch.tensor(wanted_tokens(len(rows), pieces), dtype=torch.long, device=device),
        stacks=stacks,
        decode=decode_part(rows, stacks.own.heads, device, fixed) if rows else None,
        prefill=prefill_part(pieces, device) if pieces else None,
    )


def wanted_tokens(rows: int, pieces: list[Piece]) -> list[int]:
    """Tokens whose next token is wanted: all rows, and the end of each own piece; pieces are in their ``order``."""
    ends = np.cumsum([rows] + [len(piece.ids) for piece in pieces])[1:] - 1
    own = [int(end) for end, piece in zip(ends, pieces, strict=True) if not piece.shared]
    return [*range(rows), *own]


def order_of(pieces: list[Piece]) -> list[int]:
    """Which of the given own pieces each wanted token after the rows' belongs to, in the packed order."""
    indexed = sorted(range(len(pieces)), key=lambda at: pieces[at].order)
    return [at for at in indexed if not pieces[at].shared]
