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
    ids: Tensor  # (2, rows) the tokens, and their rotary positions
    buffer: Tensor  # what all of these are views of: a step's lists reach the device in one copy

    def tensors(self) -> Iterator[Tensor]:
        """All that it consists of."""
        yield from self.single.tensors()
        yield from self.shared.tensors()
        yield from (self.blocks, self.own_length, self.present, self.write, self.ids)


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
        self.write, self.ids = np.zeros((2, rows), np.int32), np.zeros((2, rows), np.int32)

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
        arrays = [
            *_filled(*self._single, len(self._single[1]) if room is None else rows),
            *_filled(*_listed(shared), len(shared) if room is None else 2 * rows),
            blocks, self.own_length, self.present, self.write, self.ids,
        ]  # fmt: skip
        buffer, views = _in_one_copy(arrays, device)
        blocks_, own_length, present, write, ids = views[4:]
        lists = _tasks(views[0], views[1]), _tasks(views[2], views[3])
        return StepTasks(*lists, blocks_, own_length, present, write, ids, buffer)

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


def _listed(tasks: Sequence[tuple[int, int, int, list[int]]]) -> tuple[np.ndarray, np.ndarray]:
    """Start, length, level and count (4, tasks), and rows (tasks, ``WIDTH``)."""
    numbers = np.array([(*task[:3], len(task[3])) for task in tasks], np.int32).reshape(-1, 4).T
    rows = np.zeros((len(tasks), WIDTH), np.int32)
    for at, task in enumerate(tasks):
        rows[at, : len(task[3])] = task[3]
    return numbers, rows


def _tasks(numbers: Tensor, rows: Tensor) -> Tasks:
    return Tasks(numbers[0], numbers[1], numbers[2], numbers[3], rows)


def _filled(numbers: np.ndarray, rows: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """The same for ``room`` tasks, those added without rows."""
    more = room - len(rows)
    return np.pad(numbers, ((0, 0), (0, more))), np.pad(rows, ((0, more), (0, 0)))


def _in_one_copy(arrays: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, list[Tensor]]:
    """One tensor on the device and views of it, in the arrays' shapes, each at a multiple of 16 bytes.

    To a GPU it goes from pinned memory, so that the host does not wait.
    """
    starts = np.cumsum([0, *(-(-array.size // 4) * 4 for array in arrays)])
    host = torch.zeros(int(starts[-1]), dtype=torch.int32, pin_memory=device.type == "cuda")
    flat = host.numpy()
    for start, array in zip(starts, arrays, strict=False):
        flat[start : start + array.size] = array.ravel()
    buffer = host.to(device, non_blocking=True)
    views = [buffer[start : start + array.size].view(array.shape) for start, array in zip(starts, arrays, strict=False)]
    return buffer, views
