"""The engine with its improvements added one after another, for the benchmark's table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

from torch import Tensor

from benchmarks.engine_workload import Workload
from workers.engine import decode_part, scheduler
from workers.engine.attention import Part, attend_stacked
from workers.engine.engine import FastEngine
from workers.engine.load import fast_engine


@dataclass(frozen=True)
class Variant:
    """Which of the improvements are on; the names are those of the table."""

    name: str
    slots: int | None = None
    pairs_once: bool = True
    shared_attention: bool = True
    packed_weights: bool = True


VARIANTS = (
    Variant("image and prefix once, 8 slots refilled", 8, False, False, False),
    Variant("+ slots by memory", None, False, False, False),
    Variant("+ pair's text once", None, True, False, False),
    Variant("+ shared-prefix attention", None, True, True, False),
    Variant("+ packed weights (the engine)", None, True, True, True),
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
        engine: FastEngine = fast_engine(
            replace(config, batch_size=variant.slots), model, packed=variant.packed_weights
        )
        started, cpu = time.perf_counter(), time.process_time()
        futures = [future for pair in workload.pairs for future in engine.submit(pair)]
        texts = [future.result().text for future in futures]
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
        engine.close()
    return EngineRun(texts, seconds, cpu_seconds, engine.stats())


@contextmanager
def _without(variant: Variant) -> Iterator[None]:
    """Put the plain way in the place of an improvement that the variant does without."""
    worth = scheduler.WORTH_SHARING if variant.pairs_once else 2**31
    shared = decode_part.attend_shared if variant.shared_attention else _row_by_row
    with (
        mock.patch.object(scheduler, "WORTH_SHARING", worth),
        mock.patch.object(decode_part, "attend_shared", shared),
    ):
        yield


def _row_by_row(query: Tensor, keys: Tensor, values: Tensor) -> Part:
    """What a cache that holds the prefix in every row does: each row reads keys and values of its own."""
    rows = query.shape[0]
    mask = query.new_zeros(rows * keys.shape[0], 1, keys.shape[1])
    own = (tensor[None].expand(rows, *tensor.shape).contiguous() for tensor in (keys, values))
    return attend_stacked(query[:, None], *own, mask)
