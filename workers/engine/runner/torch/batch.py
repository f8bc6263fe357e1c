"""One forward pass over packed tokens: those that decode, then chunks of prompts, each with what it sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from workers.engine.runner.kv_cache import KVCache, KVStack
from workers.engine.runner.step import DecodeToken, PrefillChunk, pack_tokens
from workers.engine.runner.torch.attention import store
from workers.engine.runner.torch.decode import DecodeMetadata, FixedShape, decode_metadata
from workers.engine.runner.torch.prefill import PrefillMetadata, prefill_metadata


@dataclass
class TorchBatch:
    """The tokens of one step and the index tensors by which they attend; built once, used by every layer."""

    token_ids: Tensor  # (tokens,)
    positions: Tensor  # (tokens,)
    logits_indices: Tensor  # (rows,)
    kv_cache: KVCache
    decode: DecodeMetadata | None
    prefill: PrefillMetadata | None
    shape: FixedShape | None = None  # to which ``decode`` was padded
    rows: int = 0  # tokens that decode, padding not counted

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Queries (tokens, heads, head size), already scaled, and the tokens' own keys and values; gives the output in
        the queries' shape.
        """
        rows = self.decode.rows if self.decode else 0
        outs = []
        if self.decode:
            outs.append(self.decode.attend(self.kv_cache, layer, query[:rows], key[:rows], value[:rows]))
        if self.prefill:
            outs.append(self.prefill.attend(self.kv_cache, layer, query[rows:], key[rows:], value[rows:]))
        return (torch.cat(outs) if len(outs) > 1 else outs[0]).to(query.dtype)


def make_batch(
    decode: Sequence[DecodeToken], prefill: Sequence[PrefillChunk], kv_cache: KVCache, shape: FixedShape | None = None
) -> TorchBatch:
    """Lay out a step; with a fixed ``shape``, ``decode`` must be padded to as many tokens as it says."""
    device, heads = kv_cache.shape.device, kv_cache.shape.heads
    packed = pack_tokens(decode, prefill)
    return TorchBatch(
        token_ids=torch.from_numpy(packed.token_ids).to(device),
        positions=torch.from_numpy(packed.positions).to(device),
        logits_indices=torch.from_numpy(packed.logits_indices).to(device),
        kv_cache=kv_cache,
        decode=decode_metadata(decode, heads, device, shape) if decode else None,
        prefill=prefill_metadata(packed.chunks, device) if packed.chunks else None,
        shape=shape,
        rows=len(decode),
    )


class PrefixMetadata:
    """An image's prefix by itself: causal, stored in its slot."""

    def __init__(self, stack: KVStack, slot: int, length: int) -> None:
        self._stack = stack
        self._slots = torch.full((length,), slot, device=stack.keys[0].device)
        self._offsets = torch.arange(length, device=stack.keys[0].device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As ``TorchBatch.attend`` says."""
        stack = self._stack
        store(stack.keys[layer], stack.values[layer], (self._slots, self._offsets), key, value)
        q, k, v = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
        out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0, enable_gqa=True)
        return out[0].transpose(0, 1)
