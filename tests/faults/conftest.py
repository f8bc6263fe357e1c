"""Farms of real processes for the fault tests; one is shared by the tests that need no settings of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.drawn_inputs import DrawnInputs, draw_inputs
from tests.support.farm import Farm
from tests.support.servers import open_server
from tests.support.waits import wait_for

PAIRS = 48


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> DrawnInputs:
    """48 pairs over 8 images, one of them unreadable."""
    return draw_inputs(tmp_path_factory.mktemp("inputs"), PAIRS, seed=1)


@pytest.fixture(scope="session")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """Two workers on SQLite; each test has a run of its own."""
    folder = tmp_path_factory.mktemp("farm")
    with Farm(folder, open_server("sqlite", folder), pairs_in_flight=8) as shared:
        shared.start_launcher(workers=2)
        yield shared


def begin(farm: Farm, inputs: DrawnInputs, run: str, *options: str) -> None:
    """Enqueue a run and wait until its first pairs are done.

    What another test had described is described once more: a run that is copied is done before anything breaks.
    """
    assert farm.produce(inputs, "--run", run, "--no-reuse", *options).wait(120) == 0
    wait_for(lambda: farm.ended(run) > 0, f"{run} begins", 120)


def assert_complete(farm: Farm, run: str) -> None:
    """Wait for the run's end: each pair has one outcome, and those of the unreadable image alone have failed."""
    wait_for(lambda: farm.ended(run) >= PAIRS, f"{PAIRS} pairs of {run}", 180)
    assert farm.ended(run) == PAIRS
    assert farm.starts() >= PAIRS, "attempts are not noted"
    assert set(farm.failures(run).values()) == {"image unreadable"}
    assert {image for image, _, _ in farm.failures(run)} == {"7"}


def log_of(folder: Path) -> str:
    """All that a farm's launcher and workers said."""
    return "\n".join(path.read_text(errors="replace") for path in sorted(folder.rglob("*.log")))
