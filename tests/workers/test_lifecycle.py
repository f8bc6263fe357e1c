"""Importing the workers' app has no effect; what a worker needs comes with a worker that starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.queue.embedded import EmbeddedBroker
from tests.support.commands import Commands, command_lines
from workers.exit_codes import EXIT_CANNOT_START

BIN = Path(sys.executable).parent
LOOK = """
import json, logging, signal, sys
before = {number: signal.getsignal(number) for number in signal.valid_signals()}
import workers.celery
changed = [str(number) for number, handler in before.items() if signal.getsignal(number) is not handler]
print(json.dumps([changed, len(logging.getLogger().handlers), "torch" in sys.modules]))
"""


def run(folder: Path, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """A command in a folder of its own, with nothing set that another test has set."""
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **settings}, capture_output=True, text=True, timeout=120, check=False
    )


def left_behind(folder: Path) -> list[str]:
    """Files in the folder, and processes that know of it."""
    return [str(path) for path in folder.iterdir()] + [line for line in command_lines() if str(folder) in line]


def test_an_import_starts_nothing_and_leaves_signals_and_logging_alone(tmp_path: Path) -> None:
    done = run(tmp_path, sys.executable, "-c", LOOK)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[], 0, False]
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("arguments", [["report"], ["worker", "--help"], ["inspect", "ping", "--timeout", "1"]])
def test_looking_by_celery_leaves_nothing_behind(tmp_path: Path, arguments: list[str]) -> None:
    done = run(tmp_path, str(BIN / "celery"), "-A", "workers", *arguments)
    assert (done.returncode == 0) == (arguments[0] != "inspect"), done.stderr
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("command", ["report", "worker"])
def test_settings_that_do_not_hold_are_one_line(tmp_path: Path, command: str) -> None:
    done = run(tmp_path, str(BIN / "celery"), "-A", "workers", command, FARM_DTYPE="foo")
    assert done.returncode == EXIT_CANNOT_START
    assert done.stderr.startswith("Error: FARM_DTYPE (foo): ")
    assert len(done.stderr.splitlines()) == 1
    assert left_behind(tmp_path) == []


def test_a_worker_by_hand_starts_the_embedded_broker_and_ends_at_once_while_it_loads(short_folder: Path) -> None:
    broker = EmbeddedBroker(short_folder.resolve() / "state" / "broker")
    commands = Commands(short_folder)
    try:
        with commands.worker() as worker:
            assert worker.says("started the embedded broker"), worker.said
            worker.signal(signal.SIGTERM)
            assert worker.wait(10) == 0
            assert " ready." not in worker.said
        assert broker.answers()
    finally:
        broker.stop()
