"""The backend of compiled kernels: Qwen3-VL in float32 on a CPU, where a C compiler is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workers.engine.runner.backend import Forward
from workers.engine.runner.cpu.kernels import Kernels, load_kernels
from workers.engine.runner.cpu.layers import use_kernels
from workers.engine.runner.cpu.metadata import CpuBatch, CpuMetadata, make_cpu_batch, prefix_metadata
from workers.engine.runner.kv_cache import KVCache, KVShape
from workers.engine.runner.packed_linear import can_pack, pack_model
from workers.engine.runner.step import DecodeToken, KVCacheSizes, KVCacheSlots, PrefillChunk

FAMILIES = ("qwen3_vl", "qwen3_vl_moe")
BLOCK = 16  # LANES of kernels.c: tokens whose keys lie together, each block (head size, BLOCK)


def cpu_backend(model: Any) -> CpuBackend | None:
    """The backend for this model; None where the kernels do not fit it or cannot be compiled here."""
    fits = model.config.model_type in FAMILIES and KVShape.of(model).head_size % BLOCK == 0
    kernels = load_kernels() if fits and can_pack(model.lm_head.weight) else None
    return None if kernels is None else CpuBackend(kernels)


class CpuBackend:
    """A ``Backend`` that replaces the model's layers by compiled ones."""

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

    def prepare_prefix(self, slot: int, length: int) -> CpuMetadata:
        """As ``Backend.prepare_prefix`` says."""
        return prefix_metadata(slot, length, self._kv_cache)

    def resize(self, sizes: KVCacheSizes, keep: KVCacheSlots) -> None:
        """As ``Backend.resize`` says."""
        self._kv_cache.resize(sizes, keep)

    def release(self) -> None:
        """As ``Backend.release`` says."""
        self._kv_cache.release()
