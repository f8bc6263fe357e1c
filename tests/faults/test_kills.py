"""Workers and producers that are killed or told to stop."""

from __future__ import annotations

import signal
from functools import partial

from tests.faults.conftest import PAIRS, assert_complete
from tests.support.drawn_inputs import DrawnInputs
from tests.support.farm import Farm, kill_worker
from tests.support.waits import comes_true, wait_for

AT_MOST_S = 60.0  # the promise: a killed worker's pairs run again within it


def launcher_says(farm: Farm, words: str) -> bool:
    return farm.launcher is not None and words in farm.launcher.said


def _busy_worker(farm: Farm) -> int:
    busy = [pid for pid, worker in farm.pids().items() if farm.in_flight(worker)]
    return busy[0] if busy else 0


def _caught_at_work(farm: Farm, inputs: DrawnInputs, name: str) -> tuple[str, int]:
    """Enqueue, and look for a worker that has pairs from the first moment on; gives the run's name and the process.

    A slow machine may look again only when the run has ended; another run is begun then.
    """
    for run in (name, f"{name} again", f"{name} once more"):
        producer = farm.produce(inputs, "--run", run, "--no-reuse")
        missed = partial(_has_ended, farm, run)
        if comes_true(lambda: _busy_worker(farm), unless=missed) and (pid := _busy_worker(farm)):
            return run, pid
        assert producer.wait(120) == 0
    raise AssertionError("three runs ended before a worker was seen at work")


def _has_ended(farm: Farm, run: str) -> bool:
    return farm.ended(run) >= PAIRS


def _held_by(farm: Farm, worker: str) -> list[int]:
    return [pair_id for pair_id, holder in farm.rows("SELECT pair_id, worker FROM claims") if holder == worker]


def test_a_killed_workers_pairs_run_again_elsewhere(farm: Farm, inputs: DrawnInputs) -> None:
    run, pid = _caught_at_work(farm, inputs, "killed")
    worker, again = farm.pids()[pid], farm.generated_again()
    in_flight = kill_worker(farm, pid)
    wait_for(lambda: not _held_by(farm, worker), "its pairs are free", AT_MOST_S)
    assert_complete(farm, run)
    assert farm.generated_again() - again <= in_flight
    assert launcher_says(farm, "was ended by SIGKILL")


def test_sigterm_hands_back_and_exits_with_0(farm: Farm, inputs: DrawnInputs) -> None:
    run, pid = _caught_at_work(farm, inputs, "terminated")
    kill_worker(farm, pid, signal.SIGTERM)
    assert_complete(farm, run)
    wait_for(lambda: launcher_says(farm, "ended with exit code 0"), "the worker ends with 0")


def test_two_producers_of_which_one_is_killed_make_one_run(farm: Farm, inputs: DrawnInputs) -> None:
    first, second = (farm.produce(inputs, "--run", "twice", "--no-reuse", "--max-queued", "8") for _ in range(2))
    wait_for(lambda: farm.counts("twice").expected, "the pairs are stored")
    first.kill()
    assert second.wait(120) == 0
    assert_complete(farm, "twice")
    assert farm.counts("twice").expected == len(farm.published("twice")["results"]) + len(farm.failures("twice"))
