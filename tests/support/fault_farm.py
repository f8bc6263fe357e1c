"""A whole farm of real processes in a folder: servers, launcher, workers, producer; to be looked into and broken."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, inspect, text

from app.database.connection import database_url, open_database
from app.queue.celery_app import KEY_PREFIX
from app.settings import load_settings
from tests.support.drawn_inputs import DrawnInputs
from tests.support.fault_servers import RedisServer, open_server
from tests.support.waits import wait_for

_STARTED = re.compile(r"worker (\S+) started \(process (\d+)\)")

# Each started attempt at a pair leaves a line: results alone cannot tell what was generated and thrown away.
_NOTE_SQLITE = """
CREATE TRIGGER note_begun AFTER UPDATE OF attempts ON claims WHEN NEW.attempts > OLD.attempts
BEGIN INSERT INTO started VALUES (NEW.pair_id, NEW.worker); END
"""
_NOTE_POSTGRES = """
CREATE FUNCTION note_begun() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO started VALUES (NEW.pair_id, NEW.worker); RETURN NEW; END $$;
CREATE TRIGGER note_begun AFTER UPDATE OF attempts ON claims FOR EACH ROW
WHEN (NEW.attempts > OLD.attempts) EXECUTE FUNCTION note_begun()
"""


@dataclass(frozen=True)
class Outcome:
    """How far a run is."""

    expected: int
    ended: int


@dataclass
class Farm:
    """One farm; ``model`` and ``settings`` (FARM_ variables) hold for all its processes."""

    folder: Path
    database_kind: str = "sqlite"
    workers: int = 2
    model: str = "small"
    settings: Mapping[str, str] = field(default_factory=dict)
    launcher: subprocess.Popen[bytes] | None = None
    producers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> Farm:
        """Start the servers; workers and producers follow on demand."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.redis = RedisServer(self.folder / "redis")
        self.redis.start()
        self.database = open_server(self.database_kind, self.folder)
        self.environment = {
            **os.environ,
            "REDIS_URL": self.redis.url,
            "DATABASE_URL": self.database.url,
            "FARM_STATE_DIR": str(self.folder / "state"),
            "FARM_MODEL": self.model,
            "FARM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "FARM_PAIRS_IN_FLIGHT": "8",
            **self.settings,
        }
        self._note_begun()
        return self

    def __exit__(self, *_: object) -> None:
        """End all of it, whatever state it is in."""
        for process in [*self.producers, *([self.launcher] if self.launcher else [])]:
            _end(process)
        for pid in self.pids():
            _signal(pid, signal.SIGKILL)
        self.engine.dispose()
        self.redis.stop(signal.SIGKILL)
        self.database.stop()

    # -- processes

    def start_workers(self) -> None:
        """Start the launcher, which starts the workers."""
        command = ["-m", "workers", "up", "--num-gpus", "0", "--workers-per-gpu", str(self.workers)]
        command += ["--log-dir", str(self.folder / "logs")]
        self.launcher = self._spawn(command, "launcher.log")

    def stop_workers(self) -> int:
        """SIGTERM to the launcher; gives its exit status."""
        assert self.launcher is not None
        self.launcher.terminate()
        return self.launcher.wait(90)

    def enqueue(self, inputs: DrawnInputs, *options: str) -> subprocess.Popen[bytes]:
        """Start a producer."""
        command = ["-m", "producer", "enqueue", "--json", "--stage1-result", str(inputs.stage1)]
        command += ["--input-data", str(inputs.images), "--max-new-tokens", "12", "--model-path", self.model, *options]
        self.producers.append(self._spawn(command, "producer.log"))
        return self.producers[-1]

    def pids(self) -> dict[int, str]:
        """The workers that live: process -> the worker's name in claims."""
        log = self.folder / "launcher.log"
        found = _STARTED.findall(log.read_text()) if log.exists() else []
        return {int(pid): worker for worker, pid in found if _lives(int(pid))}

    def said(self, words: str, log: str | None = None) -> int:
        """How often a log (or any worker's) has these words."""
        files = [self.folder / log] if log else sorted((self.folder / "logs").glob("*.log"))
        return sum(file.read_text(errors="replace").count(words) for file in files if file.exists())

    def export(self, run: str = "default") -> dict[str, Any]:
        """The final JSON, by the command."""
        out = self.folder / f"{run}.json"
        command = [
            sys.executable,
            "-c",
            "from app.results.cli import main; main()",
            "export",
            "--out",
            str(out),
            "--run",
            run,
        ]
        subprocess.run(command, env=self.environment, check=True, capture_output=True, timeout=120)
        return dict(json.loads(out.read_text()))

    def _spawn(self, arguments: list[str], log: str) -> subprocess.Popen[bytes]:
        with open(self.folder / log, "ab") as output:
            return subprocess.Popen([sys.executable, *arguments], env=self.environment, stdout=output, stderr=output)

    # -- what the database and the queue say

    def _note_begun(self) -> None:
        settings = load_settings(database_url=self.database.url)
        open_database(settings).dispose()
        # A transformers engine, which reads alongside a writer that holds the lock.
        self.engine: Engine = create_engine(database_url(settings), pool_pre_ping=True, connect_args=self._patient())
        if inspect(self.engine).has_table("started"):
            return
        note = _NOTE_SQLITE if self.engine.dialect.name == "sqlite" else _NOTE_POSTGRES
        with self.engine.begin() as connection:
            connection.execute(text("CREATE TABLE started (pair_id BIGINT, worker TEXT)"))
            connection.exec_driver_sql(note)

    def _patient(self) -> dict[str, Any]:
        return {"timeout": 30} if self.database_kind == "sqlite" else {"connect_timeout": 5}

    def number(self, query: str, **values: Any) -> int:
        """The first value of a query, as a number."""
        with self.engine.connect() as connection:
            return int(connection.execute(text(query), values).scalar() or 0)

    def outcome(self, run: str = "default") -> Outcome:
        """A run's counts."""
        mine = "WHERE run_id = (SELECT id FROM runs WHERE name = :run)"
        ended = f"SELECT (SELECT count(*) FROM results {mine}) + (SELECT count(*) FROM failures {mine})"
        return Outcome(self.number(f"SELECT count(*) FROM pairs {mine}", run=run), self.number(ended, run=run))

    def in_flight(self, worker: str | None = None) -> int:
        """Pairs that a worker, or all of them, have claimed."""
        if worker is None:
            return self.number("SELECT count(*) FROM claims WHERE worker <> ''")
        return self.number("SELECT count(*) FROM claims WHERE worker = :worker", worker=worker)

    def generated_again(self) -> int:
        """Attempts started at pairs that had been started before."""
        return self.number("SELECT count(*) - count(DISTINCT pair_id) FROM started")

    def failures(self, run: str = "default") -> dict[tuple[str, str, str], str]:
        """(image, subject id, object id) -> the reason."""
        query = (
            "SELECT p.image_id, p.subject_id, p.object_id, f.reason FROM failures f JOIN pairs p ON p.id = f.pair_id "
            "JOIN runs r ON r.id = p.run_id WHERE r.name = :run"
        )
        with self.engine.connect() as connection:
            rows = connection.execute(text(query), {"run": run}).all()
        return {(str(row[0]), str(row[1]), str(row[2])): str(row[3]) for row in rows}

    def queues(self) -> list[bytes]:
        """The queues in Redis that hold something."""
        keys: Iterable[bytes] = self.redis.client().scan_iter(f"{KEY_PREFIX}*.*", _type="list")
        return sorted(keys)

    def wait_for(self, ended: int, run: str = "default", limit_s: float = 180.0) -> None:
        """Wait until so many pairs of a run have their outcome. Raises TimeoutError."""
        wait_for(lambda: self.outcome(run).ended >= ended, f"{ended} pairs of {run}", limit_s)


@contextmanager
def held_still(farm: Farm) -> Iterator[None]:
    """No worker moves for as long as the block lasts."""
    pids = list(farm.pids())
    for pid in pids:
        _signal(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            _signal(pid, signal.SIGCONT)


def kill_worker(farm: Farm, pid: int, number: int = signal.SIGKILL) -> int:
    """Stop a worker still, count what it has in flight, then end it; gives the count."""
    worker = farm.pids()[pid]
    _signal(pid, signal.SIGSTOP)
    try:
        return farm.in_flight(worker)
    finally:
        _signal(pid, number)
        _signal(pid, signal.SIGCONT)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True  # no /proc on this system


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
