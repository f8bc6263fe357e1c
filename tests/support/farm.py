"""A whole farm of real processes in a folder: servers, workers, launcher, producers; to be looked into and broken."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import redis
from sqlalchemy import text

from app.database.connection import open_database, reading
from app.database.records import Run
from app.database.run_rows import find_run
from app.errors import RunError
from app.prompts import Language
from app.queue.celery_app import make_app
from app.queue.keys import PREFIX, run_lists
from app.results.export import Exported, export
from app.settings import load_settings
from producer.enqueue import prepare, publish
from producer.progress import Progress
from producer.run_request import Inputs
from tests.support.drawn_inputs import DrawnInputs
from tests.support.processes import Process, lives, send_signal
from tests.support.runs import Standing, request_for, standing
from tests.support.servers import DatabaseServer, RedisServer
from tests.support.waits import wait_for

QUICK: dict[str, Any] = {
    "lease_s": 3.0, "visibility_timeout_s": 3.0, "refresh_s": 0.5, "sweep_s": 0.5, "shutdown_grace_s": 1.0,
    "pairs_in_flight": 4, "queue_shards": 4,
}  # fmt: skip
"""Settings under which what is lost is found again within seconds."""

_STARTED = re.compile(r"worker (\S+) started \(process (\d+)\)")

# Each started attempt at a pair leaves a line: results alone cannot tell what was generated and thrown away.
_NOTE = {
    "sqlite": (
        "CREATE TRIGGER note_first AFTER INSERT ON claims WHEN NEW.attempts > 0 "
        "BEGIN INSERT INTO started VALUES (NEW.pair_id, NEW.worker); END",
        "CREATE TRIGGER note_again AFTER UPDATE OF attempts ON claims WHEN NEW.attempts > OLD.attempts "
        "BEGIN INSERT INTO started VALUES (NEW.pair_id, NEW.worker); END",
    ),
    "postgresql": (
        "CREATE FUNCTION note_started() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO started VALUES (NEW.pair_id, NEW.worker); RETURN NEW; END $$",
        "CREATE TRIGGER note_first AFTER INSERT ON claims FOR EACH ROW "
        "WHEN (NEW.attempts > 0) EXECUTE FUNCTION note_started()",
        "CREATE TRIGGER note_again AFTER UPDATE OF attempts ON claims FOR EACH ROW "
        "WHEN (NEW.attempts > OLD.attempts) EXECUTE FUNCTION note_started()",
    ),
}


class Farm:
    """One farm; ``model``, ``settings`` (by their names) and ``environment`` hold for all its processes.

    Workers come from ``start_worker`` (``celery worker`` itself) or ``start_launcher`` (``workers up``), pairs from
    ``enqueue`` (in this process) or ``produce`` (``producer enqueue``).
    """

    def __init__(
        self,
        folder: Path,
        database_server: DatabaseServer,
        *,
        model: Path | str = "small",
        environment: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.database_server = database_server
        self._state = Path(tempfile.mkdtemp(prefix="farm-"))  # short enough for a unix socket
        # As a server of somebody else's: what is killed here is not started again by whoever misses it.
        self.broker = RedisServer(self._state / "broker")
        self.broker.start()
        given = {"state_dir": self._state, "redis_url": self.broker.url, "database_url": database_server.url}
        self.settings = load_settings(**given, model=str(model), threads=1, **settings)
        self.environment = {**os.environ, **self.settings.environment(), "CUDA_VISIBLE_DEVICES": "",
                            "OMP_NUM_THREADS": "1", **(environment or {})}  # fmt: skip
        self.database = open_database(self.settings)
        self.app = make_app(self.settings)
        self.workers: list[Process] = []
        self.producers: list[Process] = []
        self.launcher: Process | None = None
        self._note_starts()

    def __enter__(self) -> Farm:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End all of it, whatever state it is in."""
        pids = self.pids()
        for process in [*self.producers, *self.workers, *([self.launcher] if self.launcher else [])]:
            process.kill()
        for pid in pids:
            send_signal(pid, signal.SIGKILL)
        self.database.dispose()
        self.broker.stop(signal.SIGKILL)
        self.database_server.stop()
        shutil.rmtree(self._state, ignore_errors=True)

    # -- processes

    def spawn_worker(
        self, app: str = "workers", *, environment: Mapping[str, str] | None = None, **settings: Any
    ) -> Process:
        """Start a worker, with settings of its own by their names, and do not wait for it."""
        more = {f"FARM_{name.upper()}": str(value) for name, value in settings.items()} | dict(environment or {})
        number = len(self.workers)
        command = [sys.executable, "-m", "celery", "-A", app, "worker", "-l", "INFO", "-n", f"w{number}@%h",
                   "--without-gossip", "--without-mingle"]  # fmt: skip
        self.workers.append(Process(command, self.environment | more, self.folder / f"worker-{number}.log"))
        return self.workers[-1]

    def start_worker(self, **settings: Any) -> Process:
        """Start a worker and wait until it consumes."""
        return ready(self.spawn_worker(**settings))

    def start_launcher(self, workers: int = 1) -> None:
        """Start the launcher, which starts so many workers."""
        command = ["-m", "workers", "up", "--num-gpus", "0", "--workers-per-gpu", str(workers)]
        command += ["--log-dir", str(self.folder / "logs")]
        self.launcher = self._spawn(command, "launcher.log")

    def produce(self, inputs: Inputs | DrawnInputs, *options: str) -> Process:
        """Start ``producer enqueue``, for short texts."""
        files = ("--stage1-result", str(inputs.stage1), "--input-data", str(inputs.images))
        model = ("--model-path", str(self.settings.model), "--max-new-tokens", "12")
        command = ["-m", "producer", "enqueue", "--json", *files, *model, *options]
        self.producers.append(self._spawn(command, "producer.log"))
        return self.producers[-1]

    def command(self, *arguments: str) -> Process:
        """Start any other ``producer`` command."""
        return self._spawn(["-m", "producer", *arguments], "producer.log")

    def _spawn(self, arguments: list[str], log: str) -> Process:
        return Process([sys.executable, *arguments], self.environment, self.folder / log)

    def pids(self) -> dict[int, str]:
        """The launcher's workers that live: process -> the worker's name in claims."""
        found = _STARTED.findall(self.launcher.said) if self.launcher else []
        return {int(pid): worker for worker, pid in found if lives(int(pid))}

    # -- what is asked of it in this process

    def enqueue(self, inputs: Inputs, name: str = "default", *, verify: Language | None = None, **settings: Any) -> int:
        """What ``producer enqueue`` does; gives the number of messages."""
        request = replace(request_for(name, model=str(self.settings.model), **settings), verify=verify)
        quiet = Progress(quiet=True)
        prepared = prepare(self.database, request, inputs, quiet)
        return publish(self.database, self.app, prepared.run, self.settings.queue_shards, quiet, total=prepared.open)

    def export(self, name: str = "default", **options: Any) -> Exported:
        """What ``results export`` does."""
        return export(self.database, self.folder / f"{name}.json", run_name=name, **options)

    def published(self, name: str = "default") -> dict[str, Any]:
        """The exported file's content."""
        document: dict[str, Any] = json.loads(self.export(name).path.read_text())
        return document

    # -- what the database and the queue say

    def run(self, name: str | None = None) -> Run:
        """A run by its name, or the only one. Raises RunError."""
        with reading(self.database) as connection:
            return find_run(connection, name)

    def counts(self, name: str = "default") -> Standing:
        """How a run stands; nothing is expected of one that is not there."""
        with reading(self.database) as connection:
            try:
                return standing(connection, find_run(connection, name))
            except RunError:
                return Standing(0, 0, 0, 0)

    def ended(self, name: str = "default") -> int:
        """A run's pairs that have their outcome."""
        counts = self.counts(name)
        return counts.done + counts.failed

    def wait_done(self, name: str = "default") -> Standing:
        """Wait until every pair of the run has its outcome. Raises TimeoutError with the workers' logs."""
        try:
            wait_for(lambda: self.ended(name) == self.counts(name).expected, f"run {name} ends")
        except TimeoutError:
            logs = "\n".join(worker.said[-3000:] for worker in self.workers)
            raise TimeoutError(f"run {name} stands at {self.counts(name)}:\n{logs}") from None
        return self.counts(name)

    def wait_begun(self, name: str = "default", done: int = 1) -> None:
        """Wait until so many pairs of the run are done."""
        wait_for(lambda: self.counts(name).done >= done, f"{done} pairs of run {name}")

    def rows(self, query: str, **values: Any) -> Sequence[Any]:
        """What a query gives."""
        with reading(self.database) as connection:
            return connection.execute(text(query), values).all()

    def number(self, query: str, **values: Any) -> int:
        """The first value of a query, as a number."""
        found = self.rows(query, **values)
        return int(found[0][0] or 0) if found else 0

    def in_flight(self, worker: str | None = None) -> int:
        """Pairs that a worker, or all of them, have claimed."""
        if worker is None:
            return self.number("SELECT count(*) FROM claims WHERE worker <> ''")
        return self.number("SELECT count(*) FROM claims WHERE worker = :worker", worker=worker)

    def starts(self) -> int:
        """Attempts that were started."""
        return self.number("SELECT count(*) FROM started")

    def generated_again(self) -> int:
        """Attempts started at pairs that had been started before."""
        return self.number("SELECT count(*) - count(DISTINCT pair_id) FROM started")

    def failures(self, run: str = "default") -> dict[tuple[str, str, str], str]:
        """(image, subject id, object id) -> the reason."""
        query = (
            "SELECT p.image_id, p.subject_id, p.object_id, f.reason FROM failures f JOIN pairs p ON p.id = f.pair_id "
            "JOIN runs r ON r.id = p.run_id WHERE r.name = :run"
        )
        return {(str(a), str(b), str(c)): str(reason) for a, b, c, reason in self.rows(query, run=run)}

    @property
    def redis(self) -> redis.Redis:
        """A fresh connection, whatever became of the server that the last one was to."""
        return self.broker.client()

    @property
    def queues(self) -> list[str]:
        """The names of the only run's lists, without the key prefix."""
        return self.lists(None)

    def lists(self, name: str | None = "default") -> list[str]:
        """The names of a run's lists, without the key prefix."""
        run = self.run(name)
        return run_lists(run.model_key, run.uuid, self.settings.queue_shards)

    def waiting(self, name: str | None = "default") -> int:
        """Messages of a run that no worker has taken."""
        client = self.redis
        return sum(int(client.llen(PREFIX + each)) for each in self.lists(name))

    def filled_queues(self) -> list[str]:
        """The keys of all runs' lists that hold something."""
        return sorted(key.decode() for key in self.redis.scan_iter(f"{PREFIX}*/*", _type="list"))

    def _note_starts(self) -> None:
        with self.database.begin() as connection:
            connection.execute(text("CREATE TABLE started (pair_id BIGINT, worker TEXT)"))
            for statement in _NOTE[self.database.dialect.name]:
                connection.exec_driver_sql(statement)


def ready(worker: Process) -> Process:
    """Wait until a worker consumes."""
    assert worker.says(" ready."), f"the worker ended with {worker.exit_code}:\n{worker.said}"
    return worker


@contextmanager
def held_still(farm: Farm) -> Iterator[None]:
    """No worker of the launcher moves for as long as the block lasts."""
    pids = list(farm.pids())
    for pid in pids:
        send_signal(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            send_signal(pid, signal.SIGCONT)


def kill_worker(farm: Farm, pid: int, number: int = signal.SIGKILL) -> int:
    """Stop a worker still, count what it has in flight, then end it; gives the count."""
    worker = farm.pids()[pid]
    send_signal(pid, signal.SIGSTOP)
    try:
        return farm.in_flight(worker)
    finally:
        send_signal(pid, number)
        send_signal(pid, signal.SIGCONT)
