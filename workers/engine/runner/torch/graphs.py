"""Decoding steps of fixed shapes, which a GPU replays as one graph each: launching kernels one by one costs
more than running them.

A step without prefill is padded up to the next shape of a coarse grid; its tensors are copied into those the
graph was captured with. Without capture (on a CPU) the same fixed shapes are run directly, which is how they
are tested.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engine.runner.kv_cache import Stacks
from workers.engine.runner.step import DecodeToken
from workers.engine.runner.torch.batch import TorchBatch, pack
from workers.engine.runner.torch.decode import DecodePart, FixedShape, Level, extent

log = logging.getLogger(__name__)

ROWS = (8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
OWN, PREFIX = 128, 64  # tokens: lengths are padded to multiples of these
KEPT = 64  # graphs; the least recently used one goes
FILLER = DecodeToken(token=0, position=0, at=0, image=None, group=None)


@dataclass
class _Captured:
    step: TorchBatch
    logits: Tensor
    replay: Callable[[], None]


class DecodeGraphs:
    """One captured step for each shape met; ``forward`` gives a step's logits (rows, vocabulary)."""

    def __init__(self, forward: Callable[[TorchBatch], Tensor], device: torch.device, *, capture: bool) -> None:
        self._forward, self._device, self._capture = forward, device, capture
        self._graphs: OrderedDict[FixedShape, _Captured] = OrderedDict()
        # One pool for all: graphs never run at once, and a step's logits are used before the next one.
        self._pool = torch.cuda.graph_pool_handle() if capture else None

    def run(self, rows: list[DecodeToken], stacks: Stacks) -> Tensor:
        """Logits (rows, vocabulary) of one decoding step; to be used before the next one."""
        shape = fixed_shape(rows, stacks)
        padded = rows + [FILLER] * (shape.rows - len(rows))
        step = pack(padded, [], stacks, self._device, shape)
        captured = self._graphs.get(shape)
        if captured is None:
            captured = self._graphs[shape] = self._captured(step)
            if len(self._graphs) > KEPT:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(shape)
        for fixed, fresh in zip(_tensors(captured.step), _tensors(step), strict=True):
            fixed.copy_(fresh)
        captured.replay()
        return captured.logits[: len(rows)]

    def clear(self) -> None:
        """Forget all graphs: they hold on to the memory of the keys and values they were captured with."""
        self._graphs.clear()

    def _captured(self, step: TorchBatch) -> _Captured:
        if not self._capture:
            captured = _Captured(step, self._forward(step), lambda: None)

            def run() -> None:
                captured.logits = self._forward(captured.step)

            captured.replay = run
            return captured
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):  # kernels load and workspaces are allocated before the capture
            for _ in range(2):
                self._forward(step)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = self._forward(step)
        log.debug("captured a decoding step of %d rows", step.ids.shape[0])
        return _Captured(step, logits, graph.replay)


def fixed_shape(rows: list[DecodeToken], stacks: Stacks) -> FixedShape:
    """The smallest shape of the grid that the rows fit."""
    count = min(_up(len(rows), ROWS), stacks.own.slots)
    own = max(row.at for row in rows) + 1
    return FixedShape(
        rows=count,
        own=min(_multiple(own, OWN), stacks.own.capacity),
        groups=_fixed_extent(extent([row.group for row in rows]), count, stacks.groups.slots, stacks.groups.capacity),
        images=_fixed_extent(extent([row.image for row in rows]), count, stacks.images.slots, stacks.images.capacity),
    )


def _fixed_extent(exact: tuple[int, int, int], rows: int, slots: int, capacity: int) -> tuple[int, int, int]:
    count, width, length = exact
    if count == 0:
        return 0, 0, 0
    return min(_power(count), slots), min(_power(width), rows), min(_multiple(length, PREFIX), capacity)


def _up(value: int, grid: tuple[int, ...]) -> int:
    return next((step for step in grid if step >= value), value)


def _power(value: int) -> int:
    return 1 << (value - 1).bit_length()


def _multiple(value: int, of: int) -> int:
    return -(-value // of) * of


def _tensors(step: TorchBatch) -> Iterator[Tensor]:
    """All that a step without prefill consists of, in a fixed order."""
    part = step.decode
    if not isinstance(part, DecodePart):
        raise TypeError("a step that decodes is wanted")
    yield from (step.ids, step.positions, step.last, part.slots, part.at, part.mask)
    for each in (part.groups, part.images):
        if isinstance(each, Level):
            yield from (each.grouped, each.mask, each.ungroup, each.absent)
