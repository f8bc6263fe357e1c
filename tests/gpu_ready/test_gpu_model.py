"""The table of ``benchmarks.gpu_model``: what must hold of the GPU's side at an 8B model's shape."""

from __future__ import annotations

import pytest

from benchmarks.gpu_model import ROWS, Shape8B, precision
from benchmarks.gpu_simulation import simulate

PAIRS = 260  # `python -m benchmarks.gpu_model` runs 2,400


@pytest.fixture(scope="module")
def shape() -> Shape8B:
    return Shape8B()


def test_a_decoding_step_is_short_and_reads_little_more_than_it_must(shape: Shape8B) -> None:
    for rows in ROWS:
        step = shape.decode(rows)
        assert step.launches <= 500
        assert step.bytes <= 1.3 * step.roofline


@pytest.mark.parametrize("in_flight", [32, 128])
def test_mixed_images_preempt_nobody_and_stay_within_what_is_allowed(shape: Shape8B, in_flight: int) -> None:
    memory = shape.memory()
    run = simulate(PAIRS, memory, in_flight=in_flight)
    assert run.runner.peak <= memory.allowed
    assert run.stats["preempted"] == 0
    assert run.runner.encodes == run.images
    assert len(run.runner.captured) <= 16


def test_slots_are_busy_and_nearly_all_steps_are_replayed(shape: Shape8B) -> None:
    runner = simulate(PAIRS, shape.memory()).runner
    assert runner.full_prefill <= 0.15 * runner.full_steps
    assert sum(runner.rows) >= 0.95 * 256 * len(runner.rows)


def test_little_memory_runs_fewer_and_loses_nothing(shape: Shape8B) -> None:
    from dataclasses import replace

    memory = shape.memory()
    small = replace(memory, allowed=memory.weights + 6 * 2**30)
    run = simulate(60, small)
    assert run.stats["preempted"] == 0
    assert run.runner.peak <= small.allowed


def test_half_precision_is_as_exact_as_torchs_own() -> None:
    assert precision() <= 1.5
