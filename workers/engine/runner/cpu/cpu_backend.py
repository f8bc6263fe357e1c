"""The backend of compiled kernels: Qwen3-VL in float32 on a CPU, where a C compiler is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.engine.runner.backend import Forward
from workers.engine.runner.cpu.kernels import Kernels, load_kernels
from workers.engine.runner.cpu.layers import CpuMetadata, use_kernels
from workers.engine.runner.kv_cache import KVCache, KVShape
from workers.engine.runner.packed_linear import can_pack, pack_model
from workers.engine.runner.step import DecodeToken, KVCacheSizes, KVCacheSlots, KVSpan, PrefillChunk, pack_tokens
from workers.engine.sampling import choose

FAMILIES = ("qwen3_vl", "qwen3_vl_moe")
IMAGES, GROUPS, SEQUENCES = range(3)  # the levels of the KV cache, as kernels.c numbers them
BLOCK = 16  # LANES of kernels.c: tokens whose keys lie together, each block (head size, BLOCK)


def cpu_backend(model: Any) -> CpuBackend | None:
    """The backend for this model; None where the kernels do not fit it or cannot be compiled here."""
    fits = model.config.model_type in FAMILIES and KVShape.of(model).head_size % BLOCK == 0
    kernels = load_kernels() if fits and can_pack(model.lm_head.weight) else None
    return None if kernels is None else CpuBackend(kernels)


class CpuBackend:
    """A ``Backend`` that replaces the model's layers by compiled ones."""

    block_tokens = 0

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def install(self, model: Any) -> KVCache:
        """As ``Backend.install`` says."""
        use_kernels(model.model.language_model, self._kernels)
        pack_model(model)
        self._kv_cache = KVCache(KVShape.of(model), block=BLOCK)
        return self._kv_cache

    def compile(self, forward: Forward) -> Forward:
        """As ``Backend.compile`` says: what can be compiled has been."""
        return forward

    def prepare_step(self, decode: Sequence[DecodeToken], prefill: Sequence[PrefillChunk]) -> CpuBatch:
        """As ``Backend.prepare_step`` says."""
        return make_cpu_batch(decode, prefill, self._kv_cache)

    def prepare_prefix(self, span: KVSpan) -> CpuMetadata:
        """As ``Backend.prepare_prefix`` says."""
        return prefix_metadata(span.slot, span.length, self._kv_cache)

    def resize(self, sizes: KVCacheSizes, keep: KVCacheSlots) -> None:
        """As ``Backend.resize`` says."""
        self._kv_cache.resize(sizes, keep)

    def choose(self, logits: Tensor, temperatures: Tensor, numbers: Tensor) -> Tensor:
        """As ``Backend.choose`` says."""
        return choose(logits, temperatures, numbers)

    def stats(self) -> dict[str, float]:
        """As ``Backend.stats`` says."""
        return {}

    def release(self) -> None:
        """As ``Backend.release`` says."""
        self._kv_cache.release()


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
