"""Steps over a paged KV cache with random contents, and what attention over them is in float64."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workers.engine.runner.paged.tasks import BLOCK, StepTasks, TaskList
from workers.engine.runner.step import Blocks, DecodeToken, KVSpan, PrefillChunk


@dataclass(frozen=True)
class PagedStep:
    """Inputs of the attention operator."""

    query: Tensor  # (rows, heads, size)
    keys: Tensor  # (blocks, kv heads, BLOCK, size)
    values: Tensor
    tasks: StepTasks
    seen: list[list[tuple[Blocks, int]]]  # by row: spans and how many of their tokens it sees

    @property
    def lists(self) -> list[Tensor]:
        return [*self.tasks.single.tensors(), *self.tasks.shared.tensors()]

    def exact(self, scale: float) -> Tensor:
        """(rows, heads, size) float64, every row by itself."""
        kv_heads = self.keys.shape[1]
        out = torch.zeros(self.query.shape, dtype=torch.float64)
        for row, spans in enumerate(self.seen):
            if not spans:
                continue
            keys, values = (
                torch.cat([tensor[torch.from_numpy(blocks).long()].transpose(0, 1).flatten(1, 2)[:, :length]
                           for blocks, length in spans], dim=1).double()
                for tensor in (self.keys, self.values)
            )  # fmt: skip
            query = self.query[row].double().view(kv_heads, -1, self.query.shape[2]) * scale
            out[row] = ((query @ keys.transpose(1, 2)).softmax(dim=-1) @ values).flatten(0, 1)
        return out


class Filler:
    """Hands out blocks of a pool in random order."""

    def __init__(self, blocks: int, seed: int) -> None:
        self.dice = random.Random(seed)
        self._free = list(range(1, blocks))
        self.dice.shuffle(self._free)

    def blocks(self, tokens: int) -> Blocks:
        count = -(-tokens // BLOCK)
        taken, self._free = self._free[:count], self._free[count:]
        assert len(taken) == count
        return np.array(taken, dtype=np.int32)

    def span(self, tokens: int) -> KVSpan:
        return KVSpan(self.dice.randrange(10**6), tokens, self.blocks(tokens))


def paged_step(
    decode: list[DecodeToken],
    prefill: list[PrefillChunk],
    *,
    heads: tuple[int, int, int] = (8, 2, 64),
    dtype: torch.dtype = torch.float32,
    room: int | None = None,
    blocks: int = 600,
) -> PagedStep:
    """A step over random keys and values; ``heads``: of queries, of keys, and their size; ``room``: rows to pad to."""
    count = len(decode) + sum(len(chunk.token_ids) for chunk in prefill)
    rows = room or count
    tasks = TaskList(rows)
    tasks.add_decode(decode)
    seen = [_spans(token.blocks, token.offset + 1, token.group, token.image) for token in decode]
    for chunk in prefill:
        tasks.add_chunk(len(seen), chunk)
        seen += [_spans(chunk.blocks, at + 1, chunk.group, chunk.image) for at in range(len(chunk.token_ids))]
    seen += [[] for _ in range(rows - count)]
    torch.manual_seed(0)
    shape = (blocks, heads[1], BLOCK, heads[2])
    keys, values = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    query = torch.randn(rows, heads[0], heads[2]).to(dtype)
    made = tasks.tasks(torch.device("cpu"), None if room is None else (rows, blocks))
    return PagedStep(query, keys, values, made, seen)


def mixed_step(rows: int = 21, **options: object) -> PagedStep:
    """Rows over two images and uneven groups, some without a group, and two chunks of prompts."""
    fill = Filler(600, 3)
    images = [fill.span(133), fill.span(300)]
    groups = [fill.span(length) for length in (5, 90, 64, 33)]
    decode = [
        DecodeToken(
            1, 1, offset, images[row * 2 // rows], groups[row % 4] if row % 5 else None, fill.blocks(offset + 9)
        )
        for row, offset in enumerate(fill.dice.randrange(120) for _ in range(rows))
    ]
    prefill = [
        PrefillChunk([1] * 37, 1, images[0], groups[1], 0, shared=False, blocks=fill.blocks(60)),
        PrefillChunk([1] * 18, 1, images[1], None, 0, shared=True, blocks=fill.blocks(18)),
    ]
    return paged_step(decode, [] if "room" in options else prefill, **options)  # type: ignore[arg-type]


def _spans(own: Blocks, length: int, *spans: KVSpan | None) -> list[tuple[Blocks, int]]:
    return [(own, length), *((span.blocks, span.length) for span in spans if span is not None)]
