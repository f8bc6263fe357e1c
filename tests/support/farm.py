"""A farm for tests: a broker, a database, and real ``celery worker`` processes that die with their test."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from app.database.connection import open_database, reading
from app.database.result_rows import Counts, count_outcomes
from app.database.run_rows import find_run
from app.queue.celery_app import all_queues, embedded_broker, make_app
from app.queue.publisher import Broker
from app.results.export import Exported, export
from app.settings import load_settings
from producer.enqueue import Inputs, prepare, publish
from producer.progress import Progress
from tests.support.runs import request_for
from tests.support.waits import PATIENCE_S, wait_for

ROOT = Path(__file__).parents[2]


class Worker:
    """One ``celery worker`` process with its log."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip

    @property
    def said(self) -> str:
        """What it has logged."""
        return self.log.read_text(errors="replace")

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process.poll() is None

    def wait_ready(self) -> Worker:
        """Wait until it consumes."""
        wait_for(lambda: not self.alive or " ready." in self.said, f"worker ready:\n{self.said}")
        assert self.alive, f"the worker ended with {self.process.returncode}:\n{self.said}"
        return self

    def signal(self, number: int) -> None:
        """Send a signal to the process alone."""
        os.kill(self.process.pid, number)

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(PATIENCE_S)

    def kill(self) -> None:
        """End its whole process group."""
        if self.alive:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE_S)


class Farm:
    """What a test needs of a farm: settings, workers, enqueueing in this process, looking and waiting."""

    def __init__(self, folder: Path, state: Path, database_url: str, model: Path) -> None:
        self.folder = folder
        self.settings = load_settings(
            state_dir=state,
            database_url=database_url,
            model=str(model),
            threads=1,
            lease_s=3.0,
            visibility_timeout_s=3.0,
            refresh_s=0.5,
            sweep_s=0.5,
            shutdown_grace_s=1.0,
            pairs_in_flight=4,
            queue_shards=4,
        )
        self.broker = embedded_broker(self.settings)
        self.broker.ensure()
        self.database: Engine = open_database(self.settings)
        self.app = make_app(self.settings)
        self.redis = Broker(self.app).redis
        self.workers: list[Worker] = []

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to belong to this farm."""
        return {**os.environ, **self.settings.environment(), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

    def spawn_worker(self, **settings: Any) -> Worker:
        """Start a worker, with ``FARM_`` settings of its own by their names, and do not wait for it."""
        more = {f"FARM_{name.upper()}": str(value) for name, value in settings.items()}
        number = len(self.workers)
        command = [sys.executable, "-m", "celery", "-A", "workers", "worker", "-l", "INFO", "-n", f"w{number}@%h",
                   "--without-gossip", "--without-mingle"]  # fmt: skip
        worker = Worker(command, self.environment | more, self.folder / f"worker-{number}.log")
        self.workers.append(worker)
        return worker

    def start_worker(self, **settings: Any) -> Worker:
        """Start a worker and wait until it consumes."""
        return self.spawn_worker(**settings).wait_ready()

    def enqueue(self, inputs: Inputs, name: str = "default", **settings: Any) -> int:
        """``producer enqueue`` in this process; gives the number of messages."""
        request = request_for(name, model=str(self.settings.model), **settings)
        quiet = Progress(quiet=True)
        prepared = prepare(self.database, request, inputs, quiet)
        return publish(self.database, self.app, prepared.run, self.settings.queue_shards, quiet,
                       total=prepared.open, enqueue_id=prepared.enqueue_id)  # fmt: skip

    def counts(self, name: str = "default") -> Counts:
        """How the run stands."""
        with reading(self.database) as connection:
            return count_outcomes(connection, find_run(connection, name))

    def wait_done(self, name: str = "default") -> Counts:
        """Wait until every pair of the run has its outcome."""

        def ended() -> Counts | None:
            counts = self.counts(name)
            return counts if counts.done + counts.failed == counts.expected else None

        try:
            return wait_for(ended, f"run {name} ends")
        except TimeoutError:
            logs = "\n".join(worker.said[-3000:] for worker in self.workers)
            raise TimeoutError(f"run {name} stands at {self.counts(name)}:\n{logs}") from None

    def wait_begun(self, name: str, done: int = 1) -> None:
        """Wait until so many pairs of the run are done."""
        wait_for(lambda: self.counts(name).done >= done, f"{done} pairs of run {name}")

    def export(self, name: str = "default", **options: Any) -> Exported:
        """``results export`` of the run."""
        return export(self.database, self.folder / f"{name}.json", run_name=name, **options)

    @property
    def queues(self) -> list[str]:
        """The names of this farm's queues, without the key prefix."""
        with reading(self.database) as connection:
            run = find_run(connection, None)
        return all_queues(run.model_key, self.settings.queue_shards)

    def stop(self) -> None:
        """End everything."""
        for worker in self.workers:
            worker.kill()
        self.database.dispose()
        self.broker.stop()


def die_with_parent() -> None:
    """No worker outlives a test run, however that ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
