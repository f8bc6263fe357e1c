"""The embedded broker: one per state folder, its queue kept over a crash."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.errors import BrokerError, StateError
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


def other_users(folder: Path) -> None:
    os.chown(folder, 12345, 12345)


def everybodys(folder: Path) -> None:
    folder.chmod(0o777)


def link(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))


@pytest.mark.parametrize("how", [other_users, everybodys, link])
def test_a_socket_in_a_folder_that_somebody_else_may_have_made_is_not_spoken_to(
    tmp_path: Path, how: Callable[[Path], None]
) -> None:
    if how is other_users and os.getuid() != 0:
        pytest.skip("only root may give a folder away")
    broker = EmbeddedBroker(tmp_path / ("deep" * 30))
    broker.ensure()
    pid, folder = pid_of(broker), broker.socket.parent
    try:
        how(folder)
        for speak in (broker.ensure, broker.answers, broker.stop, lambda: broker.url):
            with pytest.raises(StateError, match=str(folder)):
                speak()
    finally:
        os.kill(pid, signal.SIGTERM)
        for path in (folder, folder.with_name("elsewhere")):
            if path.is_symlink():
                path.unlink()
            shutil.rmtree(path, ignore_errors=True)


def torn_tail(data: Path) -> None:
    with next(data.glob("*.incr.aof")).open("r+b") as file:
        file.seek(-9, os.SEEK_END)
        file.truncate()


def garbage_within(data: Path) -> None:
    with next(data.glob("*.incr.aof")).open("r+b") as file:
        file.seek(40)
        file.write(b"\0garbage\xff" * 9)


def garbage_at_the_end(data: Path) -> None:
    with next(data.glob("*.incr.aof")).open("ab") as file:
        file.write(b"\0" * 4096)  # as a file system leaves it after a power cut


def empty_manifest(data: Path) -> None:
    next(data.glob("*.manifest")).write_bytes(b"")


def odd_manifest(data: Path) -> None:
    next(data.glob("*.manifest")).write_bytes(b"\xff\0nonsense\n")


def no_manifest(data: Path) -> None:
    next(data.glob("*.manifest")).unlink()


def missing_file(data: Path) -> None:
    next(data.glob("*.incr.aof")).unlink()


def broken_base(data: Path) -> None:
    next(data.glob("*.base.rdb")).write_bytes(b"REDIS nonsense")


def empty_base(data: Path) -> None:
    next(data.glob("*.base.rdb")).write_bytes(b"")


def a_file_in_its_place(data: Path) -> None:
    shutil.rmtree(data)
    data.write_text("no folder")


def foreign_file(data: Path) -> None:
    (data / "appendonly.aof.99.incr.aof").write_bytes(b"nonsense")


@pytest.mark.parametrize(
    "damage",
    [torn_tail, garbage_within, garbage_at_the_end, empty_manifest, odd_manifest, no_manifest, missing_file,
     broken_base, empty_base, a_file_in_its_place, foreign_file],
)  # fmt: skip
def test_a_damaged_queue_is_set_aside(
    broker: EmbeddedBroker, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    broker._client().lpush("queue", *["message"] * 9)
    broker.stop()
    damage(broker.folder / "appendonlydir")
    assert broker.ensure()
    aside = broker.folder / "appendonlydir.damaged"
    assert aside.exists() == ("is set aside as" in caplog.text)
    if damage not in (
        torn_tail,
        no_manifest,
        foreign_file,
        empty_base,
    ):  # of these the server takes what it can by itself
        assert aside.exists()
    broker._client().lpush("queue", "another")
    broker.stop()
    assert broker.ensure()
    assert broker._client().lindex("queue", 0) == b"another"


def test_data_are_not_set_aside_for_a_server_that_cannot_start_anyway(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker._client().lpush("queue", "message")
    broker.stop()
    with monkeypatch.context() as patch:
        patch.setattr("app.queue.embedded.server_binary", lambda: "/bin/false")
        with pytest.raises(BrokerError, match="ended at once"):
            broker.ensure()
    broker.ensure()
    assert broker._client().llen("queue") == 1
