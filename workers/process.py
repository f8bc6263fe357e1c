"""What one worker process holds, and the task that it runs."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from threading import Event, Thread
from typing import Any

from celery import Celery
from celery.exceptions import Ignore, Reject
from sqlalchemy import Engine as Database
from sqlalchemy.exc import DBAPIError

from app.commands import software_version
from app.database.claim_rows import release_claims
from app.database.connection import open_migrated
from app.database.tally_rows import fold
from app.database.worker_rows import worker_gone
from app.errors import FarmError, SchemaPending
from app.model_identity import ModelIdentity, identify_model
from app.queue.celery_app import ensure_broker
from app.queue.messages import names_a_pair
from app.queue.publisher import Broker
from app.queue.shards import Served
from app.settings import Settings
from workers.engine.api import DeviceLost, Engine, EngineError
from workers.exit_codes import EXIT_CANNOT_START, EXIT_DEVICE_LOST, EXIT_NO_NUMBERS, EXIT_STALLED
from workers.identity import WorkerIdentity
from workers.maintenance import Maintenance
from workers.metrics import serve_metrics
from workers.model_watch import ModelHopeless
from workers.pair_runner import PairRunner, Requeue
from workers.retry import RetryUntilUp
from workers.summary import Summary

log = logging.getLogger(__name__)

_LOOK_EVERY_S, _SAY_EVERY_S = 1.0, 30.0  # for and of a schema that is not there yet

_CONNECTIONS = 4
"""To the database, and as many more for a moment: its transactions take milliseconds, a pair takes seconds."""


LoadEngine = Callable[[Settings, ModelIdentity], Engine]


class PairFailed(Exception):
    """For Celery, whose events then show the pair as failed; the row of it is written already."""


class WorkerProcess:
    """What one ``celery worker`` holds: the engine, the database, the pairs in flight."""

    def __init__(self, app: Celery, settings: Settings, model: ModelIdentity, served: Served, load: LoadEngine) -> None:
        """``load`` makes the engine when the worker starts."""
        self._app = app
        self._served = served
        self._load = load
        self._settings = settings
        self._model = model
        self._runner: PairRunner | None = None
        self.name = settings.worker_id or f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"

    def describe_pair(self, *args: Any, **keywords: Any) -> None:
        """The task: ``describe_pair(run uuid, pair id)``."""
        if keywords or not names_a_pair(args):
            log.warning("dropped a message with other arguments than (run uuid, pair id): %.200r", args)
            return
        if self._runner is None:
            raise Reject("the worker is not ready", requeue=True)
        try:
            ended = self._runner.run(*args)
        except Requeue:
            raise Reject("the worker stops", requeue=True) from None
        except DeviceLost as error:
            log.critical("device lost: this process exits (%d): %s", EXIT_DEVICE_LOST, error)
            logging.shutdown()
            os._exit(EXIT_DEVICE_LOST)  # no clean-up: the CUDA context hangs or fails whatever is asked of it
        except ModelHopeless as error:
            log.critical(
                "this worker's model gives no numbers (NaN or infinity): %s; this process exits (%d): mend the model's "
                "files, or use --dtype bfloat16 or float32", error, EXIT_NO_NUMBERS,
            )  # fmt: skip
            logging.shutdown()
            os._exit(EXIT_NO_NUMBERS)  # whatever else is in flight has no numbers either
        else:
            if ended.failure:
                raise PairFailed(ended.failure)  # its failure is stored, and the message is acknowledged
            if not ended.done:
                raise Ignore  # a duplicate is no work that was done: acknowledged, and no event says more of it

    def start(self, **_: Any) -> None:
        """Have all that a pair needs before the first message is taken. A process that cannot ends, and says why."""
        try:
            self._prepare()
        except Exception as error:
            # Celery would swallow it and consume with a worker that can do nothing.
            expected = isinstance(error, (FarmError, EngineError, OSError))
            said = " ".join(str(error).split()) or repr(error)  # some of transformers' begin with an empty line
            log.critical("worker cannot start: %s: %s", type(error).__name__, said, exc_info=not expected)
            raise SystemExit(EXIT_CANNOT_START) from error

    def _prepare(self) -> None:
        if ensure_broker(self._settings):
            log.info("started the embedded broker, for REDIS_URL is not set")
        database = RetryUntilUp(Event())(self._open_database)
        engine = self._load(self._settings, self._model)
        model = identify_model(
            self._settings.model, self._settings.model_revision, self._settings.base_url
        )  # a hub's is here by now
        worker = self._identity(engine, model)
        self._runner = PairRunner(self._settings, database, engine, worker)
        self._database = database
        self._summary = Summary(self.name, self._runner.vitals, self._settings.summary_s)
        serve_metrics(self._settings, worker, self._summary)
        worker = replace(worker, lately=self._summary.figures)
        self._keeper = Maintenance(
            self._settings, database, Broker(self._app), self._runner, self._served, worker,
            when_stalled=self._end_stalled,
        )  # fmt: skip
        self._keeper.start()
        self._summary.start()
        log.info("worker %s: ready, up to %d pairs in flight", self.name, self._settings.pairs_in_flight)

    def consuming(self) -> None:
        """Messages are expected to come from now on."""
        if self._runner is not None:
            self._keeper.consuming()

    def consumer_stopped(self) -> None:
        """No message is expected until ``consuming`` is called again: Celery waits for Redis."""
        if self._runner is not None:
            self._keeper.consumer_stopped()

    def _identity(self, engine: Engine, model: ModelIdentity) -> WorkerIdentity:
        about = {"host": socket.gethostname(), "pid": os.getpid(), "model": model.name, "device": self._settings.device,
                 "restarts": self._settings.restarts}  # fmt: skip
        provenance = {
            "engine": getattr(engine, "name", type(engine).__name__),
            "dtype": getattr(engine, "dtype", None),
            "model_hash": model.hash or model.key,
            "software": software_version(),
        }
        return WorkerIdentity(self.name, tuple(model.keys_served), model.hash or model.key, provenance, about)

    def _open_database(self) -> Database:
        """Wait for the schema, which `producer` commands and `workers up` make. Raises SchemaError if it is newer."""
        waited = 0.0
        while True:
            try:
                # A SQLite file that is locked for longer is away: leases end meanwhile, and their holders come first.
                return open_migrated(self._settings, pool_size=_CONNECTIONS, busy_timeout_s=self._settings.lease_s / 3)
            except SchemaPending as error:
                if waited % _SAY_EVERY_S == 0:
                    log.warning("waiting for the database's schema: %s", error)
            time.sleep(_LOOK_EVERY_S)
            waited += _LOOK_EVERY_S

    def _end_stalled(self) -> None:
        log.critical(
            "stalled consumer: messages wait and none arrives; this process exits (%d) to be restarted", EXIT_STALLED
        )
        logging.shutdown()
        os._exit(EXIT_STALLED)  # nothing is in flight; a warm stop would wait for the consumer that is the trouble

    def stop_taking(self, **_: Any) -> None:
        """SIGTERM or Ctrl-C: finish what can be finished in the grace period, requeue the rest."""
        if self._runner is None:
            return
        runner = self._runner
        runner.stop_taking()

        def wait_and_end() -> None:
            deadline = time.monotonic() + self._settings.shutdown_grace_s
            while runner.in_flight() and time.monotonic() < deadline:
                time.sleep(0.05)
            if left := runner.in_flight():
                log.warning("grace period over: requeued %d pairs in flight", left)
            runner.end()

        Thread(target=wait_and_end, name="grace", daemon=True).start()

    def finish(self, sender: Any = None, **_: Any) -> None:
        """Release what is left, after the last pair, and end the process: the last that Celery tells of a worker.

        Threads of native libraries (decoders, kernels) may still run; an interpreter that is torn down around them
        aborts now and then, and its supervisor would take a clean end for a crash.
        """
        if self._runner is None:
            return
        self._runner.end()
        self._keeper.stop()
        self._summary.stop()
        self._runner.close()
        try:
            release_claims(self._database, self.name)
            with self._database.begin() as connection:
                fold(connection, self.name)
                worker_gone(connection, self.name)
        except DBAPIError:
            log.warning("the database is away: the leases of worker %s will expire", self.name)
        self._database.dispose()
        if hung := self._runner.hung_reads:
            log.warning("%d reads of images hang: this process ends without them", hung)
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(getattr(sender, "exitcode", 0) or 0))
