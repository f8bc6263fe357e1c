"""One forward pass over packed tokens whose keys and values lie in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engine.runner.paged import ops
from workers.engine.runner.paged.pool import PagedKVCache
from workers.engine.runner.paged.tasks import StepTasks, TaskList
from workers.engine.runner.step import DecodeToken, KVSpan, PrefillChunk, pack_tokens

ROWS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512)  # of fixed shapes; beyond the last, multiples of it


@dataclass
class PagedBatch:
    """The tokens of one step and what each sees."""

    logits_indices: Tensor | None  # (rows,) int64; None: every token's
    kv_cache: PagedKVCache
    tasks: StepTasks
    shape: int | None = None  # rows to which a decoding step was padded
    rows: int = 0  # of the logits, padding not counted

    @property
    def token_ids(self) -> Tensor:
        """(tokens,) int32."""
        return self.tasks.ids[0]

    @property
    def positions(self) -> Tensor:
        """(tokens,) int32, rotary."""
        return self.tasks.ids[1]

    @property
    def padded_rows(self) -> int:
        """Rows of the logits, padding included."""
        return len(self.token_ids if self.logits_indices is None else self.logits_indices)

    def tensors(self) -> Iterator[Tensor]:
        """All that a step of a fixed shape consists of."""
        yield self.tasks.buffer

    def attend_stored(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """Queries (tokens, heads, size) over what a layer has stored, the tokens' own keys and values included."""
        tasks = self.tasks
        lists = [*tasks.single.tensors(), *tasks.shared.tensors()]
        out: Tensor = ops.attention(query, keys, values, lists, tasks.blocks, tasks.own_length, tasks.present, scale)
        return out


class PrefixMetadata:
    """An image's prefix by itself, for transformers' own layers: causal, stored in its blocks."""

    def __init__(self, kv_cache: PagedKVCache, span: KVSpan) -> None:
        tasks = TaskList(span.length)
        tasks.add_causal(0, span.length, span.blocks)
        device = kv_cache.shape.device
        made = tasks.tasks(device)
        self._where = made.write.long()
        self._batch = PagedBatch(None, kv_cache, made)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Queries (tokens, heads, size), already scaled, and the tokens' own keys and values."""
        keys, values = self._batch.kv_cache.keys[layer], self._batch.kv_cache.values[layer]
        block, offset = self._where
        keys[block, :, offset] = key
        values[block, :, offset] = value
        return self._batch.attend_stored(query.contiguous(), keys, values, 1.0)


def make_batch(
    decode: Sequence[DecodeToken], prefill: Sequence[PrefillChunk], kv_cache: PagedKVCache, *, fixed: bool = False
) -> PagedBatch:
    """Lay out a step; ``fixed``: ``decode`` alone, padded to the next of ``ROWS``."""
    device = kv_cache.shape.device
    packed = pack_tokens(decode, prefill)
    count = len(packed.token_ids)
    rows = fixed_rows(count) if fixed else count
    tasks = TaskList(rows)
    if decode:
        tasks.add_decode(decode)
    first = len(decode)
    for chunk in packed.chunks:
        tasks.add_chunk(first, chunk)
        first += len(chunk.token_ids)
    tasks.ids[0, :count], tasks.ids[1, :count] = packed.token_ids, packed.positions
    return PagedBatch(
        logits_indices=torch.from_numpy(packed.logits_indices).to(device) if prefill else None,
        kv_cache=kv_cache,
        tasks=tasks.tasks(device, (rows, kv_cache.blocks + rows) if fixed else None),
        shape=rows if fixed else None,
        rows=len(packed.logits_indices),
    )


def empty_batch(rows: int, kv_cache: PagedKVCache) -> PagedBatch:
    """A step of a fixed shape in which nobody decodes."""
    device = kv_cache.shape.device
    tasks = TaskList(rows).tasks(device, (rows, kv_cache.blocks + rows))
    return PagedBatch(None, kv_cache, tasks, shape=rows)


def shapes_up_to(rows: int) -> list[int]:
    """The fixed shapes that steps of at most so many rows take, largest first."""
    return sorted({fixed_rows(each) for each in (*(step for step in ROWS if step < rows), rows)}, reverse=True)


def fixed_rows(rows: int) -> int:
    """The rows of the smallest fixed shape that has as many."""
    return next((step for step in ROWS if step >= rows), -(-rows // ROWS[-1]) * ROWS[-1])
