"""One forward pass over packed tokens: those that decode, then chunks of prompts, each with what it sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from workers.engine.runner.kv_cache import KVCache, KVStack
from workers.engine.runner.step import DecodeToken, KVSpan, PrefillChunk, pack_tokens
from workers.engine.runner.torch.attention import attend_causal, attend_shared, merge, store
from workers.engine.runner.torch.decode import DecodeMetadata, FixedShape, decode_metadata, fixed_shape

CAUSAL_SCORES = 2**21  # elements of a score matrix a head: with 32 heads 256 MiB in float32

FILLER = DecodeToken(token_id=0, position=0, offset=0, image=None, group=None)


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

    @property
    def padded_rows(self) -> int:
        """Rows of the logits, padding included."""
        return len(self.logits_indices)

    def tensors(self) -> Iterator[Tensor]:
        """All that a step of a fixed shape consists of, in a fixed order."""
        yield from (self.token_ids, self.positions, self.logits_indices)
        if self.decode is not None:
            yield from self.decode.tensors()

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


def padded_batch(decode: Sequence[DecodeToken], kv_cache: KVCache) -> TorchBatch:
    """A decoding step of the smallest fixed shape that it fits."""
    shape = fixed_shape(decode, kv_cache)
    batch = make_batch([*decode, *[FILLER] * (shape.rows - len(decode))], [], kv_cache, shape)
    batch.rows = len(decode)
    return batch


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


@dataclass
class PrefillMetadata:
    """Chunks of prompts one after another; tokens are counted from the first chunk's."""

    padded: list[Tensor]  # (chunks, longest) tokens by chunk, the last one repeated, of chunks that are nearly as long
    unpad: Tensor  # (tokens,) where in all of ``padded`` a token is
    seen: list[tuple[bool, KVSpan, int, int]] = field(default_factory=list)  # (of a group?, span, from, to)
    writes: list[tuple[bool, Tensor, Tensor, Tensor]] = field(default_factory=list)  # (shared?, tokens, slots, offsets)

    def attend(self, kv_cache: KVCache, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(tokens, heads, size): each chunk causally, then every span that a range of tokens sees."""
        for shared, tokens, slots, offsets in self.writes:
            stack = kv_cache.groups if shared else kv_cache.sequences
            store(stack.keys[layer], stack.values[layer], (slots, offsets), key[tokens], value[tokens])
        parts = [attend_causal(query[padded], key[padded], value[padded]) for padded in self.padded]
        out, lse = (torch.cat(each)[self.unpad] for each in zip(*parts, strict=True))
        for of_group, span, start, end in self.seen:
            stack = kv_cache.groups if of_group else kv_cache.images
            keys = stack.keys[layer][span.slot, :, : span.length]
            values = stack.values[layer][span.slot, :, : span.length]
            part = attend_shared(query[start:end], keys, values)
            before = (out[start:end], lse[start:end])
            out[start:end] = merge([before, part])
            lse[start:end] = torch.logaddexp(before[1], part[1])
        return out


def prefill_metadata(chunks: list[PrefillChunk], device: torch.device) -> PrefillMetadata:
    """Lay out chunks that are in their ``order``."""
    lengths = np.array([len(chunk.token_ids) for chunk in chunks])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    padded, unpad, taken = list[Tensor](), np.zeros(int(lengths.sum()), dtype=np.int64), 0
    for alike in similar_lengths(lengths):
        longest = int(lengths[alike].max())
        tokens = starts[alike, None] + np.minimum(np.arange(longest), lengths[alike, None] - 1)
        padded.append(torch.from_numpy(tokens).to(device))
        for index in alike:
            unpad[starts[index] : starts[index] + lengths[index]] = taken + np.arange(lengths[index])
            taken += longest
    made = PrefillMetadata(padded, torch.from_numpy(unpad).to(device))
    for of_group in (False, True):
        made.seen += [(of_group, *run) for run in _runs(chunks, starts, lengths, of_group)]
    for shared in (False, True):
        chosen = [index for index, chunk in enumerate(chunks) if chunk.shared == shared]
        if chosen:
            tokens = np.concatenate([starts[index] + np.arange(lengths[index]) for index in chosen])
            slots = np.concatenate([np.full(lengths[index], chunks[index].slot) for index in chosen])
            offsets = np.concatenate([np.arange(lengths[index]) for index in chosen])
            where = [torch.from_numpy(array).to(device) for array in (tokens, slots, offsets)]
            made.writes.append((shared, where[0], where[1], where[2]))
    return made


def similar_lengths(lengths: np.ndarray) -> list[np.ndarray]:
    """Numbers of chunks that are padded together: none to more than twice its length, none of it to a score matrix
    of more than ``CAUSAL_SCORES`` a head.

    Recovery prefills all that ran, the longest beside the shortest, and must not need more memory than the step that
    it recovers from.
    """
    batches: list[np.ndarray] = []
    by_length = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(by_length):
        longest = int(lengths[by_length[start]])
        most = max(1, CAUSAL_SCORES // longest**2)
        alike = by_length[start : start + most]
        alike = alike[2 * lengths[alike] >= longest]
        batches.append(alike)
        start += len(alike)
    return batches


def _runs(
    chunks: list[PrefillChunk], starts: np.ndarray, lengths: np.ndarray, of_group: bool
) -> list[tuple[KVSpan, int, int]]:
    """Ranges of tokens whose chunks follow the same span."""
    runs: list[tuple[KVSpan, int, int]] = []
    for chunk, start, length in zip(chunks, starts, lengths, strict=True):
        span = chunk.group if of_group else chunk.image
        if span is None:
            continue
        end = int(start + length)
        if runs and runs[-1][0] == span and runs[-1][2] == start:
            runs[-1] = (span, runs[-1][1], end)
        else:
            runs.append((span, int(start), end))
    return runs
