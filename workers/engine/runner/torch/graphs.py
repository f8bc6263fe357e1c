"""Decoding steps of fixed shapes, which a GPU replays as one graph each: launching kernels one by one costs
more than running them.

A step without prefill is padded up to the next shape of a coarse grid; its tensors are copied into those the
graph was captured with. Without capture (on a CPU) the same fixed shapes are run directly, which is how they
are tested.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engine.fault_isolation import is_device_lost, is_out_of_memory
from workers.engine.runner.backend import Forward
from workers.engine.runner.kv_cache import KVCache, KVStack
from workers.engine.runner.step import DecodeToken
from workers.engine.runner.torch.batch import TorchBatch, make_batch
from workers.engine.runner.torch.decode import FixedShape, Level, extent

log = logging.getLogger(__name__)

ROWS = (8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
SEQUENCE, PREFIX = 128, 64  # tokens: lengths are padded to multiples of these
MAX_GRAPHS = 64  # the least recently used one goes
FILLER = DecodeToken(token_id=0, position=0, offset=0, image=None, group=None)


@dataclass
class _Captured:
    batch: TorchBatch
    logits: Tensor
    replay: Callable[[], None]


class DecodeGraphs:
    """``forward`` with one captured step for each fixed shape met; a batch without one is run as it is."""

    def __init__(self, forward: Forward, device: torch.device) -> None:
        self.usable = True
        self._forward, self._device, self._capture = forward, device, device.type == "cuda"
        self._graphs: OrderedDict[FixedShape, _Captured] = OrderedDict()
        # One pool for all: graphs never run at once, and a step's logits are used before the next one.
        self._pool = torch.cuda.graph_pool_handle() if self._capture else None

    def __call__(self, batch: TorchBatch) -> Tensor:
        """Logits (rows, vocabulary) of one step; to be used before the next one."""
        if batch.shape is None:
            return self._forward(batch)
        try:
            return self._replayed(batch, batch.shape)[: batch.rows]
        except RuntimeError as error:  # a model or driver that does what no graph can record
            if is_out_of_memory(error) or is_device_lost(error):
                raise
            log.warning("steps cannot be replayed as graphs here, they run kernel by kernel: %s", error)
            self.usable = False
            return self._forward(batch)[: batch.rows]

    def clear(self) -> None:
        """Forget all graphs: they hold on to the memory of the keys and values they were captured with."""
        self._graphs.clear()

    def _replayed(self, batch: TorchBatch, shape: FixedShape) -> Tensor:
        captured = self._graphs.get(shape)
        if captured is None:
            captured = self._graphs[shape] = self._captured(batch)
            if len(self._graphs) > MAX_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(shape)
        for fixed, fresh in zip(_tensors(captured.batch), _tensors(batch), strict=True):
            fixed.copy_(fresh)
        captured.replay()
        return captured.logits

    def _captured(self, batch: TorchBatch) -> _Captured:
        if not self._capture:
            captured = _Captured(batch, self._forward(batch), lambda: None)

            def run() -> None:
                captured.logits = self._forward(captured.batch)

            captured.replay = run
            return captured
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):  # kernels load and workspaces are allocated before the capture
            for _ in range(2):
                self._forward(batch)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = self._forward(batch)
        log.debug("captured a decoding step of %d rows", batch.token_ids.shape[0])
        return _Captured(batch, logits, graph.replay)


def padded_batch(decode: Sequence[DecodeToken], kv_cache: KVCache) -> TorchBatch:
    """A decoding step of the smallest fixed shape that it fits."""
    shape = fixed_shape(decode, kv_cache)
    batch = make_batch([*decode, *[FILLER] * (shape.rows - len(decode))], [], kv_cache, shape)
    batch.rows = len(decode)
    return batch


def fixed_shape(decode: Sequence[DecodeToken], kv_cache: KVCache) -> FixedShape:
    """The smallest shape of the grid that the tokens fit."""
    rows = min(_up(len(decode), ROWS), kv_cache.sequences.slots)
    longest = max(token.offset for token in decode) + 1
    return FixedShape(
        rows=rows,
        length=min(_multiple(longest, SEQUENCE), kv_cache.sequences.capacity),
        groups=_fixed_extent(extent([token.group for token in decode]), rows, kv_cache.groups),
        images=_fixed_extent(extent([token.image for token in decode]), rows, kv_cache.images),
    )


def _fixed_extent(exact: tuple[int, int, int], rows: int, stack: KVStack) -> tuple[int, int, int]:
    slots, width, length = exact
    if slots == 0:
        return 0, 0, 0
    return min(_power(slots), stack.slots), min(_power(width), rows), min(_multiple(length, PREFIX), stack.capacity)


def _up(value: int, grid: tuple[int, ...]) -> int:
    return next((step for step in grid if step >= value), value)


def _power(value: int) -> int:
    return 1 << (value - 1).bit_length()


def _multiple(value: int, of: int) -> int:
    return -(-value // of) * of


def _tensors(batch: TorchBatch) -> Iterator[Tensor]:
    """All that a step without prefill consists of, in a fixed order."""
    decode = batch.decode
    if decode is None:
        raise TypeError("a step that decodes is wanted")
    yield from (batch.token_ids, batch.positions, batch.logits_indices, decode.slots, decode.offsets, decode.mask)
    for level in (decode.groups, decode.images):
        if isinstance(level, Level):
            yield from (level.grouped, level.mask, level.ungroup, level.absent)
