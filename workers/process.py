"""What one worker process holds, and the task that it runs."""

from __future__ import annotations

import logging
import os
import re
import socket
import time
import uuid
from dataclasses import replace
from threading import Event, Thread
from typing import Any

from celery import Celery
from celery.exceptions import Reject
from sqlalchemy import Engine as Database
from sqlalchemy.exc import DBAPIError

from app.database.claim_rows import release_claims
from app.database.connection import open_migrated
from app.errors import FarmError, SchemaPending
from app.model_identity import ModelIdentity
from app.queue.celery_app import ensure_broker
from app.queue.publisher import Broker
from app.settings import Settings
from workers.engine.api import DeviceLost, Engine, EngineError
from workers.engine.config import EngineConfig
from workers.engine_choice import Choice, choose_engine, look_around
from workers.exit_codes import EXIT_CANNOT_START, EXIT_DEVICE_LOST, EXIT_STALLED
from workers.gpu_memory import limit_memory
from workers.maintenance import Maintenance
from workers.pair_runner import PairRunner, Requeue
from workers.retry import RetryUntilUp

log = logging.getLogger(__name__)

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LARGEST_ID = 2**63 - 1

_LOOK_EVERY_S, _SAY_EVERY_S = 1.0, 30.0  # for and of a schema that is not there yet

_CONNECTIONS = 4
"""To the database, and as many more for a moment: its transactions take milliseconds, a pair takes seconds."""


class WorkerProcess:
    """What one ``celery worker`` holds: the engine, the database, the pairs in flight."""

    def __init__(self, app: Celery, settings: Settings, model: ModelIdentity) -> None:
        self._app = app
        self._settings = settings
        self._model = model
        self._runner: PairRunner | None = None
        self.name = settings.worker_id or f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"

    def describe_pair(self, *args: Any, **keywords: Any) -> None:
        """The task: ``describe_pair(run uuid, pair id)``."""
        if keywords or not _names_a_pair(args):
            log.warning("dropped a message with other arguments than (run uuid, pair id): %.200r", args)
            return
        if self._runner is None:
            raise Reject("the worker is not ready", requeue=True)
        try:
            self._runner.run(*args)
        except Requeue:
            raise Reject("the worker stops", requeue=True) from None
        except DeviceLost as error:
            log.critical("device lost: this process exits (%d): %s", EXIT_DEVICE_LOST, error)
            logging.shutdown()
            os._exit(EXIT_DEVICE_LOST)  # no clean-up: the CUDA context hangs or fails whatever is asked of it

    def start(self, **_: Any) -> None:
        """Have all that a pair needs before the first message is taken. A process that cannot ends, and says why."""
        try:
            self._prepare()
        except Exception as error:
            # Celery would swallow it and consume with a worker that can do nothing.
            expected = isinstance(error, (FarmError, EngineError))
            log.critical("worker cannot start: %s: %s", type(error).__name__, error, exc_info=not expected)
            raise SystemExit(EXIT_CANNOT_START) from error

    def _prepare(self) -> None:
        if ensure_broker(self._settings):
            log.info("started the embedded broker, for REDIS_URL is not set")
        database = RetryUntilUp(Event())(self._open_database)
        engine = load(self._settings, self._model)
        keys = self._model.keys_served
        self._runner = PairRunner(self._settings, database, engine, self.name, keys)
        self._database = database
        self._keeper = Maintenance(
            self._settings, database, Broker(self._app), self._runner,
            worker=self.name, model_keys=keys, when_stalled=self._end_stalled,
        )  # fmt: skip
        self._keeper.start()
        log.info("worker %s: ready, up to %d pairs in flight", self.name, self._settings.pairs_in_flight)

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

    def finish(self, **_: Any) -> None:
        """Release what is left, after the last pair."""
        if self._runner is None:
            return
        self._runner.end()
        self._keeper.stop()
        try:
            release_claims(self._database, self.name)
        except DBAPIError:
            log.warning("the database is away: the leases of worker %s will expire", self.name)
        self._database.dispose()


def _names_a_pair(args: tuple[Any, ...]) -> bool:
    """Whether these are (run uuid, pair id) as a database can look them up."""
    if len(args) != 2 or not isinstance(args[0], str) or type(args[1]) is not int:
        return False
    return bool(_UUID.fullmatch(args[0])) and 0 < args[1] <= _LARGEST_ID


def load(settings: Settings, model: ModelIdentity) -> Engine:
    """The engine that the settings ask for, within this process's share of the device."""
    if settings.base_url:
        return _connect(settings, model)
    from workers.engine.load import knows_family, load_engine  # torch takes seconds: only a worker that starts needs it

    choice = choose_engine(settings, model, look_around(settings.gpus_per_worker))
    config = EngineConfig(
        model=model.source,
        revision=model.revision,
        engine=choice.engine,
        gpus=settings.gpus_per_worker,
        device=settings.device,
        dtype=settings.dtype,
        batch_size=settings.batch_size,
        memory_fraction=settings.memory_fraction,
        threads=settings.threads,
    )
    if settings.engine == "auto" and choice.engine != "auto" and not knows_family(config):
        choice = Choice("auto", "the faster engines know the Qwen-VL families alone")
    log.info("engine %s: %s", choice.engine, choice.why)
    if choice.engine != "vllm":  # it keeps to its share by itself, in processes of its own
        limit_memory(settings)
    return load_engine(replace(config, engine=choice.engine))


def _connect(settings: Settings, model: ModelIdentity) -> Engine:
    """The engine that a server is; waits for the server."""
    from workers.engine.openai.engine import MOST_AT_ONCE, OpenAIEngine, ServerConfig

    key = settings.api_key
    return OpenAIEngine(
        ServerConfig(
            base_url=str(settings.base_url),
            model=model.source,
            api_key=key.get_secret_value() if key else None,
            most_at_once=settings.batch_size or MOST_AT_ONCE,
            timeout_s=settings.request_timeout_s,
        )
    )
