"""A packed step as the compiled kernels take it: per token, which keys it sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workers.engine.runner.kv_cache import KVCache
from workers.engine.runner.step import DecodeToken, KVSpan, PrefillChunk, pack_tokens

IMAGES, GROUPS, SEQUENCES = range(3)  # the levels of the KV cache, as kernels.c numbers them


@dataclass
class CpuMetadata:
    """What each token of a step sees; built once, used by every layer."""

    kv_cache: KVCache
    spans: np.ndarray  # (tokens, 7) int64, as the structure Token of kernels.c


@dataclass
class CpuBatch(CpuMetadata):
    """The tokens of one step."""

    token_ids: Tensor  # (tokens,)
    positions: Tensor  # (tokens,)
    logits_indices: Tensor  # (rows,)


def make_cpu_batch(decode: Sequence[DecodeToken], prefill: Sequence[PrefillChunk], kv_cache: KVCache) -> CpuBatch:
    """Lay out a step's tokens: those that decode first, then chunks, those over one span next to each other."""
    packed = pack_tokens(decode, prefill)
    seen = [
        (SEQUENCES, slot, token.offset + 1, *_run(token.group), *_run(token.image)) for slot, token in enumerate(decode)
    ]
    spans = [np.array(seen, dtype=np.int64).reshape(-1, 7)]
    for chunk in packed.chunks:
        level = GROUPS if chunk.shared else SEQUENCES
        spans.append(_causal(level, chunk.slot, len(chunk.token_ids), chunk.group, chunk.image))
    return CpuBatch(
        kv_cache=kv_cache,
        spans=np.concatenate(spans),
        token_ids=torch.from_numpy(packed.token_ids),
        positions=torch.from_numpy(packed.positions),
        logits_indices=torch.from_numpy(packed.logits_indices),
    )


def prefix_metadata(slot: int, length: int, kv_cache: KVCache) -> CpuMetadata:
    """An image's prefix by itself: causal, stored in its slot."""
    return CpuMetadata(kv_cache, _causal(IMAGES, slot, length, None, None))


def _causal(level: int, slot: int, length: int, group: KVSpan | None, image: KVSpan | None) -> np.ndarray:
    spans = np.empty((length, 7), dtype=np.int64)
    spans[:] = (level, slot, 0, *_run(group), *_run(image))
    spans[:, 2] = np.arange(1, length + 1)
    return spans


def _run(span: KVSpan | None) -> tuple[int, int]:
    return (0, 0) if span is None else (span.slot, span.length)
