"""Decoding steps of fixed shapes, which a GPU replays as one graph each: launching kernels one by one costs
more than running them.

A step without prefill is padded up to the next shape of a coarse grid; its tensors are copied into those the
graph was captured with. Without capture (on a CPU) the same fixed shapes are run directly, which is how they
are tested.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from workers.engine.fault_isolation import is_device_lost, is_out_of_memory

log = logging.getLogger(__name__)

MAX_GRAPHS = 64  # the least recently used one goes

Replay = Callable[[], None]


class FixedBatch(Protocol):
    """A step whose tensors can take another step's values."""

    rows: int  # of its logits that are wanted, padding not counted

    @property
    def shape(self) -> Hashable | None:
        """What decides the shapes of its tensors; None where they follow the step."""
        ...

    @property
    def padded_rows(self) -> int:
        """Rows of its logits."""
        ...

    def tensors(self) -> Iterator[Tensor]:
        """All that the step consists of, in a fixed order."""
        ...


class Recorder(Protocol):
    """What makes a step repeatable."""

    def record(self, step: Callable[[], None]) -> Replay:
        """Run or record ``step``; gives what repeats it over the same tensors."""
        ...

    def clear(self) -> None:
        """Every recorded step has been forgotten."""
        ...


class DirectRecorder:
    """Runs a step again each time: what a device without graphs does."""

    def record(self, step: Callable[[], None]) -> Replay:
        """As ``Recorder.record`` says."""
        return step

    def clear(self) -> None:
        """As ``Recorder.clear`` says."""


class CudaRecorder:
    """CUDA graphs in one memory pool: they never run at once, and a step's logits are used before the next one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, step: Callable[[], None]) -> Replay:
        """As ``Recorder.record`` says; runs the step twice before, so that kernels are loaded and workspaces there."""
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                step()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            step()
        return graph.replay

    def clear(self) -> None:
        """As ``Recorder.clear`` says: a pool whose last graph is gone must not be captured into again
        (vllm-project/vllm#28426).
        """
        self._pool = torch.cuda.graph_pool_handle()


@dataclass
class _Captured:
    batch: Any
    replay: Replay


class DecodeGraphs:
    """``forward`` with one captured step for each fixed shape met; a batch without one is run as it is."""

    def __init__(self, forward: Callable[[Any], Tensor], recorder: Recorder) -> None:
        self.usable = True
        self.max_rows = 0  # of the steps to come: the logits have room for as many
        self.replayed = self.captured = self.refused = 0
        self._forward, self._recorder = forward, recorder
        self._graphs: OrderedDict[Hashable, _Captured] = OrderedDict()
        self._logits: Tensor | None = None  # one for all graphs: as many rows as the largest

    def __call__(self, batch: FixedBatch) -> Tensor:
        """Logits (rows, vocabulary) of one step; to be used before the next one.

        Raises what running the step raises. A capture that the model or the driver does not allow is logged and
        counted, and from then on steps run kernel by kernel.
        """
        if batch.shape is None:
            return self._forward(batch)
        captured = self._graphs.get(batch.shape) or self._capture(batch, batch.shape)
        if captured is None:
            return self._forward(batch)[: batch.rows]
        self._graphs.move_to_end(batch.shape)
        for fixed, fresh in zip(captured.batch.tensors(), batch.tensors(), strict=True):
            if fixed is not fresh:
                fixed.copy_(fresh)
        captured.replay()
        self.replayed += 1
        assert self._logits is not None
        return self._logits[: batch.rows]

    def stats(self) -> dict[str, float]:
        """Steps ``replayed``, graphs ``captured``, and captures ``refused``."""
        return {"replayed": self.replayed, "captured": self.captured, "refused_captures": self.refused}

    def clear(self) -> None:
        """Forget all graphs: they hold on to the memory of the keys and values they were captured with."""
        self._graphs.clear()
        self._logits = None
        self._recorder.clear()

    def _capture(self, batch: FixedBatch, shape: Hashable) -> _Captured | None:
        if not self.usable:
            return None
        rows = batch.padded_rows
        if self._logits is None or len(self._logits) < rows:
            self._graphs.clear()  # they write into the smaller one
            self._logits = None
            probe = self._forward(batch)
            self._logits = probe.new_empty(max(rows, self.max_rows), probe.shape[1])
            del probe
        logits = self._logits

        def step() -> None:
            logits[:rows].copy_(self._forward(batch))

        try:
            captured = _Captured(batch, self._recorder.record(step))
        except RuntimeError as error:  # a model or driver that does what no graph can record
            if is_out_of_memory(error) or is_device_lost(error):
                raise
            log.warning("steps cannot be replayed as graphs here, they run kernel by kernel: %s", error)
            self.usable = False
            self.refused += 1
            return None
        self._graphs[shape] = captured
        self.captured += 1
        if len(self._graphs) > MAX_GRAPHS:
            self._graphs.popitem(last=False)
        log.debug("captured a decoding step of %d rows", rows)
        return captured
