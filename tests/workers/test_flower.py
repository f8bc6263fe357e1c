"""Flower, run in full: what became of each pair, and how long the queues are."""

from __future__ import annotations

import json
import signal
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.database.records import QueuedPair
from app.queue.publisher import Broker, Publisher
from producer.run_request import Inputs
from tests.support.drawn_inputs import draw_inputs
from tests.support.farm import QUICK, Farm
from tests.support.processes import Process
from tests.support.servers import SqliteFile
from tests.support.waits import wait_for
from tests.workers.test_operated import free_ports

pytest.importorskip("flower", reason="Flower is not installed: pip install '.[monitor]'")

pytestmark = pytest.mark.slow  # Flower asks its workers seven times, for a second each, before it answers

PAIRS, BAD, MORE = 18, 6, 60  # the last of three images is cut off


class Flower:
    """A Flower of a farm's own."""

    def __init__(self, farm: Farm) -> None:
        self._url = f"http://127.0.0.1:{(port := free_ports(1))}"
        command = [sys.executable, "-m", "celery", "-A", "workers", "flower", f"--port={port}", "--address=127.0.0.1"]
        environment = farm.environment | {"FLOWER_UNAUTHENTICATED_API": "1"}
        self.process = Process(command, environment, farm.folder / "flower.log")

    def page(self, path: str) -> str:
        """A page; "" while Flower starts, or where it has none."""
        try:
            with urllib.request.urlopen(f"{self._url}/{path}", timeout=30) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, OSError):
            return ""

    def states(self) -> Counter[str]:
        """Tasks by state."""
        return Counter(task["state"] for task in json.loads(self.page("api/tasks") or "{}").values())

    def events(self, kind: str) -> int:
        """How many of a kind came, of all workers: what the dashboard counts."""
        return sum(worker.get(kind, 0) for worker in json.loads(self.page("workers?json=1") or '{"data": []}')["data"])

    def knows_workers(self) -> bool:
        """Whether it has asked the workers which queues they serve."""
        return "active_queues" in self.page("api/workers?refresh=1")


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Farm]:
    folder = tmp_path_factory.mktemp("flower")
    with Farm(folder, SqliteFile(folder / "farm.sqlite"), model=tiny_model, events=True, **QUICK) as made:
        made.start_worker()
        yield made


@pytest.fixture(scope="module")
def flower(farm: Farm) -> Iterator[Flower]:
    """Flower, before any pair is described."""
    started = Flower(farm)
    try:
        wait_for(started.knows_workers, "Flower sees the worker", unless=lambda: not started.process.alive)
        yield started
    finally:
        started.process.stop()


def test_flower_shows_what_became_of_each_pair(farm: Farm, flower: Flower) -> None:
    drawn = draw_inputs(farm.folder / "in", PAIRS, seed=1)
    farm.enqueue(Inputs(drawn.stage1, drawn.images, drawn.images.parent), max_new_tokens=8)
    assert farm.wait_done().failed == BAD
    wait_for(lambda: flower.states() == Counter(SUCCESS=PAIRS - BAD, FAILURE=BAD), "every pair is in its state")
    assert "image unreadable" in flower.page("api/tasks?state=FAILURE")


def test_flower_shows_how_long_queues_are_and_a_duplicate_is_no_work_that_was_done(farm: Farm, flower: Flower) -> None:
    drawn = draw_inputs(farm.folder / "more", MORE, seed=2, bad_images=0)
    before = flower.states()
    with held_still(farm):  # so that every message is there twice before the first is taken
        farm.enqueue(Inputs(drawn.stage1, drawn.images, drawn.images.parent), "doubled", max_new_tokens=8)
        run = farm.run("doubled")
        ids = [row[0] for row in farm.rows("SELECT id FROM pairs WHERE run_id = :run ORDER BY id", run=run.id)]
        again = [QueuedPair(pair_id, "0") for pair_id in ids]
        Publisher(Broker(farm.app), run, farm.settings.queue_shards).publish(again)
    shown = farm.lists("doubled")[1]
    wait_for(
        lambda: flower.knows_workers() and shown in flower.page("broker"), "the run's lists are on the broker page"
    )
    farm.wait_done("doubled")
    wait_for(lambda: flower.states()["SUCCESS"] == before["SUCCESS"] + MORE, "every pair counts once")
    assert flower.events("task-succeeded") == flower.states()["SUCCESS"] == before["SUCCESS"] + MORE
    assert flower.states()["FAILURE"] == before["FAILURE"]
    assert "Control command error" not in farm.workers[0].said


@contextmanager
def held_still(farm: Farm) -> Iterator[None]:
    """The farm's worker does not move for as long as the block lasts."""
    farm.workers[0].signal(signal.SIGSTOP)
    try:
        yield
    finally:
        farm.workers[0].signal(signal.SIGCONT)
