"""The backend in plain torch: any device, any type; on CUDA its decoding steps are replayed as graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from workers.engine.runner.backend import Forward
from workers.engine.runner.graphs import CudaRecorder, DecodeGraphs, DirectRecorder
from workers.engine.runner.kv_cache import KVCache, KVShape
from workers.engine.runner.packed_linear import pack_model
from workers.engine.runner.step import DecodeToken, KVCacheSizes, KVCacheSlots, KVSpan, PrefillChunk
from workers.engine.runner.torch.batch import PrefixMetadata, TorchBatch, make_batch, padded_batch
from workers.engine.sampling import choose


class TorchBackend:
    """A ``Backend`` whose batches attend by themselves, called back from the model's own attention layers."""

    block_tokens = 0

    def __init__(self, *, pack_weights: bool = True, graphs: bool = False) -> None:
        """``pack_weights``: lay them out for the CPU where that helps; ``graphs``: decoding steps of fixed shapes."""
        self._pack_weights, self._fixed_shapes = pack_weights, graphs
        self._graphs: DecodeGraphs | None = None

    def install(self, model: Any) -> KVCache:
        """As ``Backend.install`` says."""
        if self._pack_weights:
            pack_model(model)
        self._kv_cache = KVCache(KVShape.of(model))
        return self._kv_cache

    def compile(self, forward: Forward) -> Forward:
        """As ``Backend.compile`` says."""
        if not self._fixed_shapes:
            return forward
        device = self._kv_cache.shape.device
        self._graphs = DecodeGraphs(forward, CudaRecorder(device) if device.type == "cuda" else DirectRecorder())
        return self._graphs

    def choose(self, logits: Tensor, temperatures: Tensor, numbers: Tensor) -> Tensor:
        """As ``Backend.choose`` says."""
        return choose(logits, temperatures, numbers)

    def stats(self) -> dict[str, float]:
        """As ``Backend.stats`` says."""
        return {} if self._graphs is None else self._graphs.stats()

    def prepare_step(self, decode: Sequence[DecodeToken], prefill: Sequence[PrefillChunk]) -> TorchBatch:
        """As ``Backend.prepare_step`` says."""
        if self._graphs is not None and self._graphs.usable and not prefill:
            return padded_batch(decode, self._kv_cache)
        return make_batch(decode, prefill, self._kv_cache)

    def prepare_prefix(self, span: KVSpan) -> PrefixMetadata:
        """As ``Backend.prepare_prefix`` says."""
        return PrefixMetadata(self._kv_cache.images, span.slot, span.length)

    def resize(self, sizes: KVCacheSizes, keep: KVCacheSlots) -> None:
        """As ``Backend.resize`` says."""
        self._forget_graphs()
        if self._graphs is not None:
            self._graphs.max_rows = sizes.slots
        self._kv_cache.resize(sizes, keep)

    def release(self) -> None:
        """As ``Backend.release`` says."""
        self._forget_graphs()
        self._kv_cache.release()

    def _forget_graphs(self) -> None:
        """They refer to the keys and values that they were captured with."""
        if self._graphs is not None:
            self._graphs.clear()
