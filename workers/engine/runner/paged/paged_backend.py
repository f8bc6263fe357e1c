"""The backend of one paged pool and fused operators: Triton's on a GPU, plain torch elsewhere, as the reference."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.engine.runner.backend import Forward
from workers.engine.runner.graphs import CudaRecorder, DecodeGraphs, DirectRecorder
from workers.engine.runner.kv_cache import KVShape
from workers.engine.runner.paged import ops, reference
from workers.engine.runner.paged.batch import PagedBatch, PrefixMetadata, empty_batch, make_batch, shapes_up_to
from workers.engine.runner.paged.layers import TextModel
from workers.engine.runner.paged.pool import PagedKVCache
from workers.engine.runner.paged.tasks import BLOCK
from workers.engine.runner.step import DecodeToken, KVCacheSizes, KVCacheSlots, KVSpan, PrefillChunk

log = logging.getLogger(__name__)


def paged_backend(model: Any, *, graphs: bool) -> PagedBackend | None:
    """The backend for this model; None where its operators do not fit it or a GPU has no Triton."""
    text = model.config.get_text_config()
    rope = (getattr(text, "rope_parameters", None) or {}).get("rope_type", "default")
    size = KVShape.of(model).head_size
    kernels = model.device.type != "cuda" or find_spec("triton") is not None
    fits = rope in ("default", "mrope") and text.hidden_act in ("silu", "swish") and size & (size - 1) == 0
    if not (fits and kernels):
        return None
    if model.device.type == "cuda" and (fault := kernels_fault(model)) is not None:
        log.warning("the fused kernels cannot be used here, torch's own are: %s", fault)
        return None
    return PagedBackend(graphs=graphs)


@torch.inference_mode()
def kernels_fault(model: Any) -> str | None:
    """What is wrong with the operators on the model's device, at its shape; None where they give what plain torch
    gives.
    """
    shape, heads = KVShape.of(model), model.config.get_text_config().num_attention_heads
    cache = PagedKVCache(replace(shape, layers=1))
    cache.resize(8)
    blocks = np.arange(1, 6, dtype=np.int32)
    image = KVSpan(0, 40, np.array([6, 7, 5], dtype=np.int32))
    batch = make_batch([DecodeToken(0, 0, 20, image, None, blocks[:2])], [], cache, fixed=True)
    torch.manual_seed(0)
    for tensor in (*cache.keys, *cache.values):
        tensor.normal_()
    width = (heads + 2 * shape.heads) * shape.head_size
    qkv = torch.randn(1, width, device=shape.device, dtype=shape.dtype)
    rotary = torch.ones(2, 1, shape.head_size, device=shape.device, dtype=shape.dtype)
    try:
        query = ops.rotate_and_store(qkv, None, None, 1e-6, rotary, cache.keys[0], cache.values[0], batch.tasks.write)
        ours = batch.attend_stored(query, cache.keys[0], cache.values[0], shape.head_size**-0.5)
        normed, _ = ops.add_rms_norm(ours.flatten(1), None, torch.ones_like(ours.flatten(1)[0]), 1e-6)
        found = torch.cat([normed, ops.silu_mul(qkv)], dim=1).float()
    except Exception as error:  # noqa: BLE001 - of Triton, its compiler or the driver
        return f"{type(error).__name__}: {error}"
    plain = reference.rotate_and_store(
        qkv, (None, None), 1e-6, rotary, (cache.keys[0], cache.values[0]), batch.tasks.write
    )
    tasks = batch.tasks
    lists = ops.split_lists([*tasks.single.tensors(), *tasks.shared.tensors()])
    kept, scale = (cache.keys[0], cache.values[0]), shape.head_size**-0.5
    seen = reference.attention(plain, kept, lists, tasks.blocks, tasks.own_length, tasks.present, scale).flatten(1)
    expected = reference.add_rms_norm(seen, None, torch.ones_like(seen[0]), 1e-6)[0]
    error_ = (found - torch.cat([expected, reference.silu_mul(qkv)], dim=1).float()).abs().max().item()
    return None if error_ < 0.1 else f"they differ from plain torch by {error_:.2g}"


class PagedBackend:
    """A ``Backend`` with a forward pass of its own; transformers' layers encode images alone."""

    block_tokens = BLOCK

    def __init__(self, *, graphs: bool) -> None:
        """``graphs``: pad decoding steps to fixed shapes, which a GPU replays."""
        self._fixed_shapes = graphs
        self._capture_at_start = False
        self._graphs: DecodeGraphs | None = None

    def install(self, model: Any) -> PagedKVCache:
        """As ``Backend.install`` says."""
        with torch.no_grad():
            self._model = TextModel(model)
        if model.device.type == "cuda":
            torch.cuda.empty_cache()  # of the weights that were joined
        self._kv_cache = PagedKVCache(KVShape.of(model))
        return self._kv_cache

    def compile(self, forward: Forward) -> Forward:
        """As ``Backend.compile`` says: ``forward`` is not used, this backend has its own."""
        if not self._fixed_shapes:
            return self._model
        device = self._kv_cache.shape.device
        self._capture_at_start = device.type == "cuda"
        self._graphs = DecodeGraphs(self._model, CudaRecorder(device) if device.type == "cuda" else DirectRecorder())
        return self._graphs

    def prepare_step(self, decode: Sequence[DecodeToken], prefill: Sequence[PrefillChunk]) -> PagedBatch:
        """As ``Backend.prepare_step`` says."""
        fixed = self._graphs is not None and self._graphs.usable and not prefill
        return make_batch(decode, prefill, self._kv_cache, fixed=fixed)

    def prepare_prefix(self, span: KVSpan) -> PrefixMetadata:
        """As ``Backend.prepare_prefix`` says."""
        return PrefixMetadata(self._kv_cache, span)

    @torch.inference_mode()
    def resize(self, sizes: KVCacheSizes, keep: KVCacheSlots) -> None:
        """As ``Backend.resize`` says, but for what the slots hold: blocks are allocated anew."""
        if self._graphs is not None:
            self._graphs.clear()
            self._graphs.max_rows = sizes.slots
        self._kv_cache.resize(sizes.blocks)
        if self._graphs is not None and self._capture_at_start:
            for rows in shapes_up_to(sizes.slots):  # the largest first: its memory serves the others
                self._graphs(empty_batch(rows, self._kv_cache))

    def choose(self, logits: Tensor, temperatures: Tensor, numbers: Tensor) -> Tensor:
        """As ``Backend.choose`` says."""
        chosen: Tensor = ops.sample(logits, temperatures, numbers)
        return chosen

    def stats(self) -> dict[str, float]:
        """As ``Backend.stats`` says."""
        return {} if self._graphs is None else self._graphs.stats()

    def release(self) -> None:
        """As ``Backend.release`` says."""
        if self._graphs is not None:
            self._graphs.clear()
        self._kv_cache.release()
