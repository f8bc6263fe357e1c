"""Decoding steps of fixed shapes, which a GPU replays as one graph each: launching kernels one by one costs
more than running them.

A step without prefill is padded up to the next shape of a coarse grid; its tensors are copied into those the
graph was captured with. Without capture (on a CPU) the same fixed shapes are run directly, which is how they
are tested.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engine.fault_isolation import is_device_lost, is_out_of_memory
from workers.engine.runner.backend import Forward
from workers.engine.runner.torch.batch import TorchBatch

log = logging.getLogger(__name__)

MAX_GRAPHS = 64  # the least recently used one goes


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
        self._graphs: OrderedDict[Hashable, _Captured] = OrderedDict()
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

    def _replayed(self, batch: TorchBatch, shape: Hashable) -> Tensor:
        captured = self._graphs.get(shape)
        if captured is None:
            captured = self._graphs[shape] = self._captured(batch)
            if len(self._graphs) > MAX_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(shape)
        for fixed, fresh in zip(captured.batch.tensors(), batch.tensors(), strict=True):
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
