"""How ``producer run`` ends: in order however impatient somebody is, and killed without leaving its broker behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.queue.embedded import EmbeddedBroker
from app.results.cli import main as results
from tests.producer.test_lives_of_runs import Home, inputs_about
from tests.support.processes import Process, lives
from tests.support.waits import wait_for


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    yield made
    made.stop()


def broker_of(place: Home) -> EmbeddedBroker:
    return EmbeddedBroker(Path(place.environment["FARM_STATE_DIR"]).resolve() / "broker")


def busy(place: Home, tmp_path: Path) -> tuple[Process, int]:
    """A run that waits for its model's server, and the process of its broker."""
    place.answers.clear()
    run = place.run(inputs_about(tmp_path, "stone", images=4), "one", "out.json")
    wait_for(lambda: place.asked("stone"), "it works", unless=lambda: not run.alive)
    return run, int(broker_of(place)._client().info("server")["process_id"])


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGHUP], ids=["SIGKILL", "SIGHUP"]
)
def test_a_run_that_is_ended_from_outside_leaves_no_broker_behind(place: Home, tmp_path: Path, number: int) -> None:
    run, broker = busy(place, tmp_path)
    run.signal(number)
    run.wait()
    place.answers.set()
    wait_for(lambda: not lives(broker), "the broker ends")
    again = place.run(inputs_about(tmp_path, "stone", images=4), "one", "out.json")
    assert again.wait() == 0, again.said
    assert len(place.results("out.json")) == 12
    wait_for(lambda: not broker_of(place).answers(), "nothing is left running")


def test_a_broker_that_somebody_uses_outlives_the_run_that_was_killed(place: Home, tmp_path: Path) -> None:
    run, broker = busy(place, tmp_path)
    user = broker_of(place)._client()
    run.signal(signal.SIGKILL)
    run.wait()
    place.answers.set()
    wait_for(lambda: len(user.client_list()) <= 2, "its workers are gone")  # the keeper looks in now and then
    assert user.ping()
    assert lives(broker)
    user.connection_pool.disconnect()
    wait_for(lambda: not lives(broker), "the broker ends")


def test_ctrl_c_twice_keeps_the_order_of_the_end(place: Home, tmp_path: Path) -> None:
    run, broker = busy(place, tmp_path)
    run.signal(signal.SIGINT)
    assert run.says("interrupted: "), run.said
    run.signal(signal.SIGINT)
    assert run.says("stopping"), run.said
    run.signal(signal.SIGINT)
    place.answers.set()
    assert run.wait() == 1
    assert "Traceback" not in run.said
    log = "".join(path.read_text() for path in (Path(place.environment["FARM_STATE_DIR"]) / "logs").glob("*.log"))
    assert "Warm shutdown" in log
    assert "Redis is away" not in log, "the broker ended before its workers"
    assert "Connection to broker lost" not in log
    assert not lives(broker)


def test_status_asks_nobody_where_no_broker_runs(place: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.enqueue(inputs_about(tmp_path, "stone", images=1), "one")
    place.do("producer", "broker", "stop")
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"slept {seconds} s"))
    for name, value in place.environment.items():
        monkeypatch.setitem(os.environ, name, value)
    from click.testing import CliRunner

    found = CliRunner().invoke(results, ["status", "--json"])
    assert found.exit_code == 0, found.output
    assert '"queued": null, "dead_letters": null' in found.output
