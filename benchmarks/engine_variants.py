"""The engine with its improvements added one after another, for the benchmark's table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

from torch import Tensor

from benchmarks.engine_workload import Workload, warm_up
from workers.engine.load import packed_engine
from workers.engine.packed import sequence
from workers.engine.runner.torch import decode
from workers.engine.runner.torch.attention import Part, attend_shared, attend_stacked


@dataclass(frozen=True)
class Variant:
    """Which of the improvements are on; the names are those of the table."""

    name: str
    slots: int | None = None
    pairs_once: bool = True
    shared_attention: bool = True
    packed_weights: bool = True
    kernels: bool = True


VARIANTS = (
    Variant("image and prefix once, 8 slots refilled", 8, False, False, False, False),
    Variant("+ slots by memory", None, False, False, False, False),
    Variant("+ pair's text once", None, True, False, False, False),
    Variant("+ shared-prefix attention", None, True, True, False, False),
    Variant("+ packed weights", None, True, True, True, False),
    Variant("+ compiled kernels (the engine)", None, True, True, True, True),
)


@dataclass
class EngineRun:
    """What an engine wrote, and where its time went."""

    texts: list[str]
    seconds: float
    cpu_seconds: float
    stats: dict[str, float] = field(default_factory=dict)


def run_variant(variant: Variant, config: Any, model: Any, workload: Workload) -> EngineRun:
    """Run the workload through one engine; pairs are submitted one by one, as the farm's tasks do."""
    with _without(variant):
        sized = replace(config, batch_size=variant.slots)
        engine = packed_engine(sized, model, pack_weights=variant.packed_weights, kernels=variant.kernels)
        for future in engine.submit(warm_up().requests):
            future.result()
        before = engine.stats()
        started, cpu = time.perf_counter(), time.process_time()
        futures = [future for pair in workload.pairs for future in engine.submit(pair)]
        texts = [future.result().text for future in futures]
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
        engine.close()
    return EngineRun(texts, seconds, cpu_seconds, _since(before, engine.stats()))


def _since(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What the counters of an engine counted between two readings."""
    stats = {name: value - before.get(name, 0.0) for name, value in after.items()}
    return stats | {"occupancy": stats["busy_slots"] / stats["wanted_slots"], "slots": after["slots"]}


@contextmanager
def _without(variant: Variant) -> Iterator[None]:
    """Put what it improves in the place of an improvement that the variant does without."""
    worth = sequence.WORTH_SHARING if variant.pairs_once else 2**31
    shared = attend_shared if variant.shared_attention else _row_by_row
    with (
        mock.patch.object(sequence, "WORTH_SHARING", worth),
        mock.patch.object(decode, "attend_shared", shared),
    ):
        yield


def _row_by_row(query: Tensor, keys: Tensor, values: Tensor) -> Part:
    """What a cache that holds the prefix in every row does: each row reads keys and values of its own."""
    rows = query.shape[0]
    mask = query.new_zeros(rows * keys.shape[0], 1, keys.shape[1])
    own_keys, own_values = (tensor[None].expand(rows, *tensor.shape).contiguous() for tensor in (keys, values))
    return attend_stacked(query[:, None], own_keys, own_values, mask)
