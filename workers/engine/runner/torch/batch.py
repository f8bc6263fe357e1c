"""One forward pass over packed tokens: rows that decode, then chunks of prompts, each with what it sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workers.engine.runner.kv_cache import Stacks
from workers.engine.runner.step import DecodeToken, PrefillChunk, logits_indices
from workers.engine.runner.torch.decode import DecodePart, FixedShape, decode_part
from workers.engine.runner.torch.prefill import PrefillPart, prefill_part


@dataclass
class TorchBatch:
    """The tokens of one step and the index tensors by which they attend; built once, used by every layer."""

    ids: Tensor  # (tokens,)
    positions: Tensor  # (tokens,)
    last: Tensor  # tokens whose next token is wanted: all rows, and the end of each own chunk
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
    rows: list[DecodeToken],
    chunks: list[PrefillChunk],
    stacks: Stacks,
    device: torch.device,
    fixed: FixedShape | None = None,
) -> TorchBatch:
    """Lay out a step's tokens: rows first, then chunks, those over one prefix next to each other."""
    chunks = sorted(chunks, key=lambda chunk: chunk.order)
    ids = [row.token for row in rows] + [token for chunk in chunks for token in chunk.ids]
    positions = [np.array([row.position for row in rows], dtype=np.int64)]
    positions += [np.arange(len(chunk.ids)) + chunk.position for chunk in chunks]
    return TorchBatch(
        ids=torch.tensor(ids, device=device),
        positions=torch.from_numpy(np.concatenate(positions)).to(device),
        last=torch.tensor(logits_indices(len(rows), chunks), dtype=torch.long, device=device),
        stacks=stacks,
        decode=decode_part(rows, stacks.own.heads, device, fixed) if rows else None,
        prefill=prefill_part(chunks, device) if chunks else None,
    )
