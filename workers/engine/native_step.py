"""A packed step as the compiled kernels take it: per token, which keys it sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workers.engine.decode_part import Row
from workers.engine.kv_stack import Prefix, Stacks
from workers.engine.packed_step import wanted_tokens
from workers.engine.prefill_part import Piece

PICTURES, GROUPS, OWN = range(3)  # the stacks, as kernels.c numbers them


@dataclass
class SeenStep:
    """What each token of a step sees; built once, used by every layer."""

    stacks: Stacks
    tokens: np.ndarray  # (tokens, 7) int64, as the structure Token of kernels.c


@dataclass
class NativeStep(SeenStep):
    """The tokens of one step."""

    ids: Tensor  # (tokens,)
    positions: Tensor  # (tokens,)
    last: Tensor  # tokens whose next token is wanted: all rows, and the end of each own piece


def pack_native(rows: list[Row], pieces: list[Piece], stacks: Stacks) -> NativeStep:
    """Lay out a step's tokens: rows first, then pieces, those over one prefix next to each other."""
    pieces = sorted(pieces, key=lambda piece: piece.order)
    ids = [row.token for row in rows] + [token for piece in pieces for token in piece.ids]
    positions = [np.array([row.position for row in rows], dtype=np.int64)]
    seen = [(OWN, slot, row.at + 1, *_run(row.group), *_run(row.picture)) for slot, row in enumerate(rows)]
    tokens = [np.array(seen, dtype=np.int64).reshape(-1, 7)]
    for piece in pieces:
        places = np.arange(len(piece.ids))
        positions.append(places + piece.position)
        stack = GROUPS if piece.shared else OWN
        tokens.append(_causal(stack, piece.target, len(piece.ids), piece.group, piece.picture))
    return NativeStep(
        ids=torch.tensor(ids),
        positions=torch.from_numpy(np.concatenate(positions)),
        last=torch.tensor(wanted_tokens(len(rows), pieces), dtype=torch.long),
        stacks=stacks,
        tokens=np.concatenate(tokens),
    )


def prefix_tokens(slot: int, length: int) -> np.ndarray:
    """A picture's prefix by itself: causal, stored in its slot."""
    return _causal(PICTURES, slot, length, None, None)


def _causal(stack: int, slot: int, length: int, group: Prefix | None, picture: Prefix | None) -> np.ndarray:
    tokens = np.empty((length, 7), dtype=np.int64)
    tokens[:] = (stack, slot, 0, *_run(group), *_run(picture))
    tokens[:, 2] = np.arange(1, length + 1)
    return tokens


def _run(prefix: Prefix | None) -> tuple[int, int]:
    return (0, 0) if prefix is None else (prefix.slot, prefix.length)
