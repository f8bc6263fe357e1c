"""A packed step as the compiled kernels take it: per token, which keys it sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workers.engine.runner.kv_cache import Stacks
from workers.engine.runner.step import DecodeToken, KVSpan, PrefillChunk, logits_indices

IMAGES, GROUPS, OWN = range(3)  # the stacks, as kernels.c numbers them


@dataclass
class CpuMetadata:
    """What each token of a step sees; built once, used by every layer."""

    stacks: Stacks
    tokens: np.ndarray  # (tokens, 7) int64, as the structure Token of kernels.c


@dataclass
class CpuBatch(CpuMetadata):
    """The tokens of one step."""

    ids: Tensor  # (tokens,)
    positions: Tensor  # (tokens,)
    last: Tensor  # tokens whose next token is wanted: all rows, and the end of each own chunk


def pack_cpu(rows: list[DecodeToken], chunks: list[PrefillChunk], stacks: Stacks) -> CpuBatch:
    """Lay out a step's tokens: rows first, then chunks, those over one prefix next to each other."""
    chunks = sorted(chunks, key=lambda chunk: chunk.order)
    ids = [row.token for row in rows] + [token for chunk in chunks for token in chunk.ids]
    positions = [np.array([row.position for row in rows], dtype=np.int64)]
    seen = [(OWN, slot, row.at + 1, *_run(row.group), *_run(row.image)) for slot, row in enumerate(rows)]
    tokens = [np.array(seen, dtype=np.int64).reshape(-1, 7)]
    for chunk in chunks:
        places = np.arange(len(chunk.ids))
        positions.append(places + chunk.position)
        stack = GROUPS if chunk.shared else OWN
        tokens.append(_causal(stack, chunk.target, len(chunk.ids), chunk.group, chunk.image))
    return CpuBatch(
        ids=torch.tensor(ids),
        positions=torch.from_numpy(np.concatenate(positions)),
        last=torch.tensor(logits_indices(len(rows), chunks), dtype=torch.long),
        stacks=stacks,
        tokens=np.concatenate(tokens),
    )


def prefix_tokens(slot: int, length: int) -> np.ndarray:
    """An image's prefix by itself: causal, stored in its slot."""
    return _causal(IMAGES, slot, length, None, None)


def _causal(stack: int, slot: int, length: int, group: KVSpan | None, image: KVSpan | None) -> np.ndarray:
    tokens = np.empty((length, 7), dtype=np.int64)
    tokens[:] = (stack, slot, 0, *_run(group), *_run(image))
    tokens[:, 2] = np.arange(1, length + 1)
    return tokens


def _run(prefix: KVSpan | None) -> tuple[int, int]:
    return (0, 0) if prefix is None else (prefix.slot, prefix.length)
