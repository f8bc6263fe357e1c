"""``producer run``: broker, workers, queue and export on this machine, as one command that can be repeated.

The workers are started as a child process (``python -m workers``), so that the producer itself imports neither
torch nor the workers.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import click
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from app.commands import say, settings_from, table
from app.database.connection import open_database, reading
from app.database.records import ACTIVE
from app.database.result_rows import failure_counts
from app.database.run_rows import all_runs, set_state
from app.database.tally_rows import claimed, counts_of
from app.errors import RunError
from app.processes import die_with_parent, python_command, python_path, visible_gpus
from app.queue.celery_app import check_broker, embedded_broker, make_app
from app.results.export import describe_export, export
from app.results.output import STANDARD_OUTPUT, refuse_unwritable
from app.settings import Settings
from producer.broker_keeper import kept
from producer.enqueue import prepare, publish
from producer.interrupts import Interrupts
from producer.options import RunOptions
from producer.prepared import Prepared
from producer.progress import Progress, log_above
from producer.report import describe, warnings
from producer.waiting import wait_for_end

_LOOK_S = 0.5
_GRACE_S = 15.0


@dataclass(frozen=True)
class LocalOptions:
    """The options of ``producer run`` alongside those that say what the run is."""

    output: Path
    num_gpus: int | None
    workers_per_gpu: int
    gpus_per_worker: int | None
    batch_size: int | None
    engine: str | None
    api_key_env: str | None
    dtype: str | None
    strict: bool
    state_dir: Path | None
    log_format: str | None
    log_level: str | None

    def gpus(self) -> int:
        """How many GPUs of this machine may be used. Raises click.UsageError if more are asked for than there are."""
        found = len(visible_gpus())
        if self.num_gpus is not None and self.num_gpus > found:
            raise click.UsageError(f"--num-gpus {self.num_gpus}: this machine shows {found} GPUs; 0 is the CPU")
        return found if self.num_gpus is None else self.num_gpus


class RunLocally:
    """One ``producer run``."""

    def __init__(self, options: RunOptions, local: LocalOptions) -> None:
        self._options = options
        self._local = local
        self._settings = settings_from(
            state_dir=local.state_dir,
            model=options.model_path,
            model_revision=options.model_revision,
            batch_size=local.batch_size,
            gpus_per_worker=local.gpus_per_worker,
            engine=local.engine,
            base_url=options.base_url,
            api_key_env=local.api_key_env,
            dtype=local.dtype,
            log_format=local.log_format,
            log_level=local.log_level,
        )
        self._progress = Progress()
        log_above(self._progress, self._settings)
        self._interrupts = Interrupts()

    def run(self) -> None:
        """Enqueue, work, wait, export; ends by saying where the JSON is. Exits with 1 if ``strict`` and not all is."""
        with self._interrupts.watched():
            self._run()

    def _run(self) -> None:
        reported = {"num_gpus": self._local.gpus(), "workers_per_gpu": self._local.workers_per_gpu}
        request = self._options.request(self._settings, reported)
        request.model.refuse_missing()
        if self._local.output == STANDARD_OUTPUT:
            raise click.UsageError(
                "--output -: this command prints its progress there; `results export --out -` does it"
            )
        refuse_unwritable(self._local.output)
        check_broker(self._settings)
        database = self._database = open_database(self._settings)
        prepared = prepare(database, request, self._options.inputs(), self._progress)
        say(describe(prepared))
        for line in warnings(prepared):
            say(line, err=True)
        for line in self._others(database, prepared):
            say(line)
        if prepared.run.state != ACTIVE:
            with database.begin() as connection:
                set_state(connection, prepared.run, ACTIVE)
            say(f"run {prepared.run.name} was {prepared.run.state}; it goes on")
        if prepared.open:
            self._work(database, prepared)
        self._finish(database, prepared)

    def _others(self, database: Engine, prepared: Prepared) -> Iterator[str]:
        """What other runs have left; this command's workers do not touch it."""
        with reading(database) as connection:
            for run in all_runs(connection):
                pending = counts_of(connection, run).pending
                if run.id != prepared.run.id and pending:
                    yield f"note: run {run.name} ({run.state}) has {pending} pending pairs, which stay as they are"

    def _work(self, database: Engine, prepared: Prepared) -> None:
        with ExitStack() as stack:
            try:
                stack.enter_context(self._broker(self._settings))
                workers = stack.enter_context(self._workers(self._settings, prepared.run.uuid))
                self._publish(database, prepared)
                wait_for_end(database, prepared, self._progress, check=lambda: self._check(workers))
            except (KeyboardInterrupt, SystemExit):
                self._say_what_is_waited_for(prepared.run.uuid)
                say("finished pairs are kept, and the same command resumes", err=True)
                raise
            finally:
                with self._interrupts.held("stopping workers and broker"):
                    stack.close()

    def _finish(self, database: Engine, prepared: Prepared) -> None:
        name = prepared.run.name
        done = export(database, self._local.output, run_name=name)
        with reading(database) as connection:
            failures = failure_counts(connection, prepared.run)
        if failures:
            say(table([(f"failed: {reason}", count) for reason, count in failures.items()]))
        say(describe_export(done))
        if self._local.strict and done.lacks:
            raise SystemExit(1)

    @contextmanager
    def _broker(self, settings: Settings) -> Iterator[None]:
        """The embedded broker for as long as this run needs it; one that ran before goes on running."""
        if settings.redis_url is not None:
            yield
            return
        with kept(embedded_broker(settings)):
            yield

    @contextmanager
    def _workers(self, settings: Settings, run_uuid: str) -> Iterator[subprocess.Popen[str]]:
        logs = settings.state_dir.resolve() / "logs"
        command = python_command(
            "workers", "up", "--workers-per-gpu", str(self._local.workers_per_gpu), "--log-dir", str(logs), "--give-up"
        )
        if self._local.num_gpus is not None:
            command += ["--num-gpus", str(self._local.num_gpus)]
        say(f"starting workers; their logs are in {logs}", err=True)
        environment = {**os.environ, **python_path(), **settings.environment(), "FARM_ONLY_RUN": run_uuid}
        # Ctrl-C comes to this process, which stops its workers in order.
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
            start_new_session=True, preexec_fn=die_with_parent,
        )  # fmt: skip
        lines = Thread(target=self._pass_on, args=(process,), name="lines of workers up", daemon=True)
        lines.start()
        try:
            yield process
        finally:
            self._stop(process, run_uuid)
            lines.join(_LOOK_S)

    def _pass_on(self, process: subprocess.Popen[str]) -> None:
        """What the launcher says goes above the bar, instead of through it."""
        for line in process.stderr or ():
            self._progress.say(line.rstrip("\n"))

    def _stop(self, process: subprocess.Popen[str], run_uuid: str) -> None:
        """End the workers in order; a further Ctrl-C ends them at once."""

        def hurry() -> str:
            process.send_signal(signal.SIGTERM)
            return (f"stopped at once: {self._in_flight(run_uuid)} pairs in flight are lost, and are described from "
                    "their beginning by the same command")  # fmt: skip

        process.send_signal(signal.SIGTERM)
        self._interrupts.hurry = hurry
        try:
            process.wait(self._settings.shutdown_grace_s + 2 * _GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
        finally:
            self._interrupts.hurry = None

    def _say_what_is_waited_for(self, run_uuid: str) -> None:
        number, grace = self._in_flight(run_uuid), self._settings.shutdown_grace_s
        say(f"interrupted: waiting for {number} pairs in flight, for up to {grace:.0f} s; Ctrl-C again ends them "
            "at once, and what is written of these pairs is lost", err=True)  # fmt: skip

    def _in_flight(self, run_uuid: str) -> int | str:
        try:
            with reading(self._database) as connection:
                return sum(claimed(connection, run) for run in all_runs(connection) if run.uuid == run_uuid)
        except DBAPIError:
            return "the"

    def _publish(self, database: Engine, prepared: Prepared) -> None:
        app = make_app(self._settings)
        publish(
            database, app, prepared.run, self._settings.queue_shards, self._progress,
            total=prepared.open, replaced=prepared.replaced,
        )  # fmt: skip

    def _check(self, workers: subprocess.Popen[str]) -> None:
        if (code := workers.poll()) is not None:
            words = self._last_words()
            raise RunError(f"the workers ended (exit code {code}); the same command resumes.\n{words}")

    def _last_words(self) -> str:
        """The last critical line of the workers' logs, and where they are."""
        logs = sorted((self._settings.state_dir.resolve() / "logs").glob("*.log"))
        lines = [line for log in logs for line in log.read_text(errors="replace").splitlines() if "CRITICAL" in line]
        return "\n".join([*lines[-1:], f"Logs: {', '.join(map(str, logs))}"])
