"""Redis restarted, emptied, and full of what does not belong there."""

from __future__ import annotations

import random
import signal

import pytest

from tests.faults.conftest import assert_complete, begin
from tests.support.drawn_inputs import DrawnInputs
from tests.support.farm import Farm
from tests.support.faults import Scene, duplicate_messages, push_garbage, restart_redis


@pytest.mark.parametrize("forget", [False, True], ids=["with its data", "without"])
def test_redis_comes_back(farm: Farm, inputs: DrawnInputs, forget: bool) -> None:
    run = f"redis-{forget}"
    begin(farm, inputs, run)
    restart_redis(Scene(farm, inputs, (), random.Random(1)), signal.SIGKILL, forget=forget)
    assert_complete(farm, run)


def test_duplicates_and_garbage_change_nothing(farm: Farm, inputs: DrawnInputs) -> None:
    begin(farm, inputs, "garbage")
    scene, workers, again = Scene(farm, inputs, (), random.Random(1)), set(farm.pids()), farm.generated_again()
    duplicate_messages(scene)
    push_garbage(scene)
    assert_complete(farm, "garbage")
    assert len(workers) == 2
    assert farm.generated_again() == again
    assert workers <= set(farm.pids()), "a worker died of it"
