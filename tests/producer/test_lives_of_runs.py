"""Lives of runs, with real processes: started twice, stopped, passed by another, steered while workers are busy.

The model is on a server of this test's, which answers when it is let: nothing here depends on how fast a machine is.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from producer.run_request import Inputs
from tests.support.chat_server import MODEL, ChatServer, text_of
from tests.support.fake_engine import FakeEngine, echo
from tests.support.fake_engine import text_of as prompt_of
from tests.support.processes import CHECKOUT, Process
from tests.support.runs import write_inputs
from tests.support.waits import wait_for
from workers.engine.api import Completion, Request

IN_FLIGHT = 4
PROGRAMS = {
    "producer": ("-m", "producer"), "workers": ("-m", "workers"),
    "results": ("-c", "from app.results.cli import main; main()"),
}  # fmt: skip


def words_of(program: str, *arguments: object) -> list[str]:
    """A command as its parts."""
    return [sys.executable, *PROGRAMS[program], *map(str, arguments)]


class Home:
    """A state folder, an environment for commands, and the server that has the model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answers = threading.Event()  # to real requests; to a worker's probe the server answers at once
        self.answers.set()
        self.engine = FakeEngine(self._answer)
        self.server = ChatServer(self.engine)
        self.processes: list[Process] = []
        self.environment = {
            **os.environ, "FARM_STATE_DIR": str(folder / "state"), "FARM_PAIRS_IN_FLIGHT": str(IN_FLIGHT),
            "FARM_REFRESH_S": "1", "FARM_VISIBILITY_TIMEOUT_S": "4", "FARM_LEASE_S": "4", "FARM_SWEEP_S": "0.5",
            "FARM_SHUTDOWN_GRACE_S": "1",
        }  # fmt: skip

    def _answer(self, request: Request) -> Completion:
        if len(prompt_of(request)) > 1:
            self.answers.wait(90)
        return echo(request)

    @property
    def of_server(self) -> tuple[str, ...]:
        """The options that say which model."""
        return ("--base-url", self.server.url, "--model-path", MODEL)

    def start(self, program: str, *arguments: object, name: str | None = None) -> Process:
        """Any command, not waited for."""
        log = self.folder / f"{name or len(self.processes)}.log"
        self.processes.append(Process(words_of(program, *arguments), self.environment, log))
        return self.processes[-1]

    def run(self, inputs: Inputs, run: str, output: str) -> Process:
        """``producer run``."""
        files = ("--stage1-result", inputs.stage1, "--input-data", inputs.images, "--output", self.folder / output)
        return self.start("producer", "run", *files, "--run", run, "--engine", "openai", *self.of_server, name=output)

    def do(self, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Any command, to its end."""
        words = words_of(program, *arguments)
        return subprocess.run(words, env=self.environment, cwd=CHECKOUT, capture_output=True, text=True, timeout=90)

    def enqueue(self, inputs: Inputs, run: str, *options: str) -> None:
        """``producer enqueue``, which must succeed."""
        files = ("--stage1-result", inputs.stage1, "--input-data", inputs.images)
        done = self.do("producer", "enqueue", *files, "--run", run, *self.of_server, *options)
        assert done.returncode == 0, done.stderr

    def runs(self) -> dict[str, dict[str, Any]]:
        """``results runs`` by name."""
        done = self.do("results", "runs", "--json")
        assert done.returncode == 0, done.stderr
        return {row["run"]: row for row in map(json.loads, done.stdout.splitlines())}

    def asked(self, name: str) -> int:
        """How many texts about things of that name the server was asked for."""
        return sum(name in text_of(body) for body in self.server.asked)

    def results(self, output: str) -> list[Any]:
        """What an exported file holds."""
        return list(json.loads((self.folder / output).read_text())["results"])

    def stop(self) -> None:
        """End all of it."""
        self.answers.set()
        self.engine.close()
        for process in self.processes:
            process.kill()
        self.do("producer", "broker", "stop")
        self.server.stop()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    yield made
    made.stop()


def inputs_about(folder: Path, name: str, images: int) -> Inputs:
    """Images of three pairs whose things are called so, one predicate each."""
    made = write_inputs(folder / name, images=images, pairs=3, predicates=1)
    for path in (made.images, *made.stage1_files):
        path.write_text(path.read_text().replace("thing ", f"{name} "))
    return made


def test_a_second_run_of_the_same_and_an_enqueue_beside_it_end_well_with_the_same_export(
    home: Home, tmp_path: Path
) -> None:
    inputs = inputs_about(tmp_path, "stone", images=4)
    home.answers.clear()
    first = home.run(inputs, "one", "first.json")
    wait_for(lambda: home.asked("stone"), "the first one works", unless=lambda: not first.alive)
    second = home.run(inputs, "one", "second.json")
    assert second.says("starting workers"), second.said
    home.enqueue(inputs, "one")
    home.answers.set()
    assert (first.wait(), second.wait()) == (0, 0), first.said + second.said
    assert len(home.results("first.json")) == 12
    assert home.results("first.json") == home.results("second.json")
    assert home.asked("stone") == 12, "each once"


def test_a_stopped_run_delays_no_other_and_its_own_command_resumes(home: Home, tmp_path: Path) -> None:
    wrong, right = inputs_about(tmp_path, "wrong", images=10), inputs_about(tmp_path, "right", images=2)
    home.answers.clear()
    stopped = home.run(wrong, "wrong", "wrong.json")
    wait_for(lambda: home.asked("wrong"), "it works", unless=lambda: not stopped.alive)
    stopped.signal(signal.SIGINT)
    assert stopped.wait() != 0
    home.answers.set()
    before = home.asked("wrong")
    other = home.run(right, "right", "right.json")
    assert other.wait() == 0, other.said
    assert "run wrong (active) has" in other.said
    assert (home.asked("wrong"), home.asked("right"), len(home.results("right.json"))) == (before, 6, 6)
    again = home.run(wrong, "wrong", "wrong.json")
    assert again.wait() == 0, again.said
    assert len(home.results("wrong.json")) == 30
    assert home.asked("right") == 6


def test_a_small_run_passes_a_large_one_which_is_then_paused_and_cancelled(home: Home, tmp_path: Path) -> None:
    large, small = inputs_about(tmp_path, "large", images=10), inputs_about(tmp_path, "small", images=1)
    home.answers.clear()
    home.enqueue(large, "large")
    up = ("--num-gpus", "0", "--engine", "openai", *home.of_server, "--log-dir", tmp_path / "logs")
    workers = home.start("workers", "up", *up)
    wait_for(lambda: home.asked("large"), "a worker is busy", unless=lambda: not workers.alive)
    home.enqueue(small, "small", "--priority", "10")
    home.do("producer", "priority", "large", "-1")
    assert home.do("producer", "pause", "large").returncode == 0
    home.answers.set()
    wait_for(lambda: home.runs()["small"]["pending"] == 0, "the small one ends")
    assert home.asked("large") <= IN_FLIGHT, "a paused run's pairs were given out"
    assert home.do("producer", "resume", "large").returncode == 0
    wait_for(lambda: home.asked("large") > IN_FLIGHT, "the large one goes on")
    home.answers.clear()
    assert home.do("producer", "cancel", "large").returncode == 0
    home.answers.set()
    drained = home.do("producer", "stop")
    assert drained.returncode == 0, drained.stderr
    found = home.runs()
    assert found["small"]["done"] == 3
    assert found["large"]["state"] in ("cancelled", "paused")


@pytest.mark.parametrize("model", ["./m-with-a-typo", "/nowhere/model"])
def test_a_model_that_is_not_there_makes_no_run(home: Home, tmp_path: Path, model: str) -> None:
    inputs = inputs_about(tmp_path, "stone", images=1)
    files = ("--stage1-result", inputs.stage1, "--input-data", inputs.images)
    home.enqueue(inputs, "other")
    for command in (("enqueue",), ("run", "--output", tmp_path / "out.json")):
        done = home.do("producer", *command, *files, "--model-path", model)
        assert done.returncode != 0
        assert model in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    assert list(home.runs()) == ["other"]
    assert not (tmp_path / "out.json").exists()


def test_where_everything_is_dropped_nothing_is_a_success(home: Home, tmp_path: Path) -> None:
    inputs = inputs_about(tmp_path, "stone", images=2)
    inputs.images.write_text(inputs.images.read_text().replace('"image_path": "', '"image_path": "/elsewhere/'))
    out = tmp_path / "out.json"
    files = ("--stage1-result", inputs.stage1, "--input-data", inputs.images, "--output", out)
    done = home.do("producer", "run", *files, "--engine", "openai", *home.of_server)
    assert (done.returncode, out.exists()) == (1, False)
    assert "--image-prefix OLD=NEW" in done.stderr
