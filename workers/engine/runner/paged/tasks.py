"""What a step's tokens see, as a list of tasks in device memory.

A task is one span of blocks and some of the tokens that see it; a kernel reads the span's keys once for all of them.
Every token is a row and sees up to three levels: its own sequence up to itself (OWN), its group's shared prefix and
its image's prefix. All lists have room for the most that so many rows can need, so a captured step repeats whatever
they say; a task without rows costs a launched program and reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from workers.engine.runner.step import Blocks, DecodeToken, KVSpan, PrefillChunk

BLOCK = 16  # tokens of a block: half of one stands empty at a span's end on average
OWN, GROUP, IMAGE = range(3)
LEVELS = 3
WIDTH = 16  # rows of a task over a span that several rows see

Seen = tuple[Blocks, int]
"""A span's blocks and its length in tokens."""


@dataclass
class Tasks:
    """Tasks of one width: (tasks,) int32 but for ``rows``, (tasks, width)."""

    start: Tensor  # where in ``blocks`` the span's begin
    length: Tensor  # tokens of the span
    level: Tensor
    count: Tensor  # rows at work; 0 for a task that fills up the list
    rows: Tensor

    def tensors(self) -> Iterator[Tensor]:
        """All that it consists of."""
        return (getattr(self, field.name) for field in fields(self))


@dataclass
class StepTasks:
    """All that a step's attention reads besides queries, keys and values; int32."""

    single: Tasks  # of one row: tokens that decode, over their own
    shared: Tasks  # of ``WIDTH`` rows
    blocks: Tensor  # (n,) of all spans, one after another
    own_length: Tensor  # (rows,) tokens that a row sees of its own sequence, itself included
    present: Tensor  # (rows, LEVELS) whether a row sees a level
    write: Tensor  # (2, rows) the block and the offset there of a row's key and value

    def tensors(self) -> Iterator[Tensor]:
        """All that it consists of."""
        yield from self.single.tensors()
        yield from self.shared.tensors()
        yield from (self.blocks, self.own_length, self.present, self.write)


class TaskList:
    """Collects a step's spans and rows."""

    def __init__(self, rows: int) -> None:
        self._blocks: list[Blocks] = [np.zeros(1, np.int32)]  # that of rows which fill up a shape
        self._taken = 1
        self._starts: dict[int, int] = {}  # by a span's first block, which no other span has
        self._single: tuple[np.ndarray, np.ndarray] = (np.zeros((4, 0), np.int32), np.zeros((0, 1), np.int32))
        self._members: dict[tuple[int, int], tuple[Seen, list[int]]] = {}
        self._own: list[tuple[int, int, int, list[int]]] = []
        self.own_length = np.ones(rows, np.int32)
        self.present = np.zeros((rows, LEVELS), np.int32)
        self.write = np.zeros((2, rows), np.int32)

    def add_decode(self, decode: Sequence[DecodeToken]) -> None:
        """Rows 0 .. n - 1."""
        count, rows = len(decode), np.arange(len(decode), dtype=np.int32)
        offsets = np.array([token.offset for token in decode], dtype=np.int32)
        used = offsets // BLOCK + 1
        ends = np.cumsum(used, dtype=np.int32)
        self._blocks += [token.blocks[:end] for token, end in zip(decode, used.tolist(), strict=True)]
        numbers = np.stack((self._taken + ends - used, offsets + 1, np.full_like(rows, OWN), np.ones_like(rows)))
        self._single = numbers, rows[:, None]
        self._taken += int(ends[-1])
        for row, token in enumerate(decode):
            self._see(row, token.group, token.image)
        self.own_length[:count] = offsets + 1
        self.present[:count, OWN] = 1
        self.write[0, :count] = [token.blocks[token.offset // BLOCK] for token in decode]
        self.write[1, :count] = offsets % BLOCK

    def add_chunk(self, first: int, chunk: PrefillChunk) -> None:
        """Rows ``first`` .. of a prompt's tokens, each of which sees those before it."""
        self.add_causal(first, len(chunk.token_ids), chunk.blocks)
        for row in range(first, first + len(chunk.token_ids)):
            self._see(row, chunk.group, chunk.image)

    def add_causal(self, first: int, length: int, blocks: Blocks) -> None:
        """Rows ``first`` .. over a span that they themselves are."""
        start, rows = self._start(blocks, length), np.arange(length, dtype=np.int32)
        for at in range(0, length, WIDTH):
            end = min(length, at + WIDTH)
            self._own.append((start, end, OWN, list(range(first + at, first + end))))
        self.own_length[first : first + length] = rows + 1
        self.present[first : first + length, OWN] = 1
        self.write[0, first : first + length] = blocks[rows // BLOCK]
        self.write[1, first : first + length] = rows % BLOCK

    def tasks(self, device: torch.device, room: tuple[int, int] | None = None) -> StepTasks:
        """As tensors; with ``room`` for as many rows and blocks as a fixed shape says."""
        rows = len(self.own_length)
        shared = [*self._own]
        for (level, _), ((blocks, length), members) in self._members.items():
            start = self._start(blocks, length)
            self.present[members, level] = 1
            for at in range(0, len(members), WIDTH):
                shared.append((start, length, level, members[at : at + WIDTH]))
        blocks = np.concatenate(self._blocks)
        if room is not None:
            blocks = np.concatenate([blocks, np.zeros(max(0, room[1] - len(blocks)), np.int32)])
        return StepTasks(
            _on_device(*self._single, len(self._single[1]) if room is None else rows, device),
            _tensors(shared, len(shared) if room is None else 2 * rows, WIDTH, device),
            *(torch.from_numpy(each).to(device) for each in (blocks, self.own_length, self.present, self.write)),
        )

    def _see(self, row: int, group: KVSpan | None, image: KVSpan | None) -> None:
        for level, span in ((GROUP, group), (IMAGE, image)):
            if span is not None:
                members = self._members.get((level, span.slot))
                if members is None:
                    members = self._members[level, span.slot] = ((span.blocks, span.length), [])
                members[1].append(row)

    def _start(self, blocks: Blocks, length: int) -> int:
        """Where in the list of blocks these begin, as many as ``length`` tokens take; each span is listed once."""
        first = int(blocks[0])
        start = self._starts.get(first)
        if start is None:
            start = self._starts[first] = self._taken
            used = blocks[: -(-length // BLOCK)]
            self._blocks.append(used)
            self._taken += len(used)
        return start


def _tensors(tasks: Sequence[tuple[int, int, int, list[int]]], room: int, width: int, device: torch.device) -> Tasks:
    numbers = np.array([(*task[:3], len(task[3])) for task in tasks], np.int32).reshape(-1, 4).T
    rows = np.zeros((len(tasks), width), np.int32)
    for at, task in enumerate(tasks):
        rows[at, : len(task[3])] = task[3]
    return _on_device(numbers, rows, room, device)


def _on_device(numbers: np.ndarray, rows: np.ndarray, room: int, device: torch.device) -> Tasks:
    """``numbers`` (4, tasks): start, length, level, count; ``rows`` (tasks, width); both filled up to ``room``."""
    more = room - len(rows)
    numbers = np.ascontiguousarray(np.pad(numbers, ((0, 0), (0, more))))  # kernels step from task to task by one
    start, length, level, count = torch.from_numpy(numbers).to(device)
    return Tasks(start, length, level, count, torch.from_numpy(np.pad(rows, ((0, more), (0, 0)))).to(device))
