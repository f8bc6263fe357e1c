"""Models that cannot describe anything, in real processes: said once, blamed on no pair, and not tried for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.checkpoints import changed_weights, poisoned
from tests.support.farm import QUICK, Farm
from tests.support.runs import write_inputs
from tests.support.servers import SqliteFile
from workers.exit_codes import EXIT_CANNOT_START, EXIT_NO_NUMBERS
from workers.model_watch import HOPELESS_AFTER


@pytest.fixture
def farm_with(tmp_path: Path) -> Iterator[Callable[[Path], Farm]]:
    """Makes a farm with a model."""
    with ExitStack() as stack:

        def make(model: Path) -> Farm:
            server = SqliteFile(tmp_path / "farm.sqlite")
            return stack.enter_context(Farm(tmp_path / "farm", server, model=model, **QUICK))

        yield make


def test_a_model_without_numbers_ends_its_worker_and_the_launcher(
    tmp_path: Path, farm_with: Callable[[Path], Farm]
) -> None:
    farm = farm_with(poisoned(tmp_path / "model", "lm_head.weight", float("nan")))
    inputs = write_inputs(tmp_path / "in", images=4, pairs=6)
    farm.enqueue(inputs, max_new_tokens=8)
    farm.start_launcher()
    assert farm.launcher is not None
    assert farm.launcher.wait() == 1
    assert "not started again" in farm.launcher.said
    assert f"exit code {EXIT_NO_NUMBERS}, for its model gives no numbers" in farm.launcher.said
    lines = [line for log in (farm.folder / "logs").glob("*.log") for line in log.read_text().splitlines()]
    assert [line for line in lines if " CRITICAL " in line and "this worker's model gives no numbers (NaN" in line]
    assert set(farm.failures().values()) == {"model gives no numbers"}
    failed = farm.counts().failed
    assert HOPELESS_AFTER <= failed < 24, "it gives up after those that were in flight"
    farm.enqueue(inputs, max_new_tokens=8)  # the model is to blame, and may be mended by now
    assert farm.counts().failed == 0


def test_a_checkpoint_that_is_not_whole_cannot_start(tmp_path: Path, farm_with: Callable[[Path], Farm]) -> None:
    folder = changed_weights(
        tmp_path / "model", lambda all_: {key: each for key, each in all_.items() if key != "lm_head.weight"}
    )
    worker = farm_with(folder).spawn_worker()
    assert worker.wait() == EXIT_CANNOT_START
    [line] = [line for line in worker.said.splitlines() if " CRITICAL " in line]
    assert "worker cannot start: CannotServe" in line
    assert "1 missing (lm_head.weight)" in line
