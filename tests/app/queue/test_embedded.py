"""The embedded broker: one per state folder, its queue kept over a crash."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.errors import BrokerError
from app.queue.embedded import EmbeddedBroker
from tests.support.waits import wait_for


def pid_of(broker: EmbeddedBroker) -> int:
    return int(broker._client().info("server")["process_id"])


def test_who_comes_first_starts_it(short_folder: Path) -> None:
    broker = EmbeddedBroker(short_folder / "broker")
    try:
        with ThreadPoolExecutor(4) as threads:
            started = list(threads.map(lambda _: EmbeddedBroker(short_folder / "broker").ensure(), range(4)))
        assert started.count(True) == 1
    finally:
        broker.stop()


def test_its_queue_outlives_a_kill(broker: EmbeddedBroker) -> None:
    broker._client().lpush("queue", "message")
    os.kill(pid_of(broker), signal.SIGKILL)
    wait_for(lambda: not broker.answers(), "the server is gone")
    assert broker.ensure()
    assert broker._client().llen("queue") == 1


def test_a_server_that_is_about_to_end_is_followed_by_another(short_folder: Path) -> None:
    broker = EmbeddedBroker(short_folder / "broker")
    broker.folder.mkdir()
    ending = (broker.folder / "alive").open("w")
    fcntl.flock(ending, fcntl.LOCK_EX)  # as a server's that has closed its socket and not yet ended
    with ThreadPoolExecutor(1) as threads:
        started = threads.submit(broker.ensure)
        time.sleep(0.3)
        assert not started.done()
        ending.close()
        assert started.result(15)
    assert broker.answers()
    broker.stop()


def test_stopping_says_whether_it_ran(short_folder: Path) -> None:
    broker = EmbeddedBroker(short_folder / "broker")
    assert not broker.stop()
    broker.ensure()
    assert broker.stop()
    assert not broker.answers()
    assert not broker.stop()


def test_a_long_path_gets_a_short_socket(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path / ("deep" * 30))
    assert len(str(broker.socket)) < 100
    broker.ensure()
    try:
        assert broker.answers()
    finally:
        broker.stop()


def test_nobody_else_may_talk_to_it(broker: EmbeddedBroker) -> None:
    assert broker.socket.stat().st_mode & 0o077 == 0
    assert broker._client().config_get("port")["port"] == "0"


def test_a_server_that_cannot_start_is_told_with_its_log(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.queue.embedded.server_binary", lambda: "/bin/false")
    with pytest.raises(BrokerError, match="ended at once"):
        EmbeddedBroker(short_folder / "broker").ensure()
