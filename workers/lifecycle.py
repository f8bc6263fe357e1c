"""The workers' Celery app, and what a worker process does from its start to its end.

Making the app has no effect: settings are read when Celery first asks for its configuration, and server, logging,
signal handlers and engine come with a worker that starts. So ``celery -A workers report`` leaves nothing behind.
"""

from __future__ import annotations

import logging
import signal
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import click
from celery import Celery, bootsteps, signals

from app.errors import FarmError, printable
from app.logs import set_up_logging
from app.model_identity import ModelIdentity, identify_model
from app.queue.celery_app import worker_configuration
from app.queue.keys import TASK
from app.queue.shards import Served
from app.settings import Settings, current_settings
from workers.engine.api import Engine
from workers.engine.config import EngineConfig
from workers.engine_choice import Choice, choose_engine, look_around
from workers.exit_codes import EXIT_CANNOT_START
from workers.flower_queues import show_served
from workers.gpu_memory import limit_memory
from workers.process import PairFailed, WorkerProcess

log = logging.getLogger(__name__)


def make_worker_app() -> Celery:
    """The app of ``celery -A workers``: all that a worker is, from the environment's settings."""
    app = Celery("farm", set_as_current=False)
    served = Served()
    app.add_defaults(partial(_configuration, served))
    app.steps["consumer"].add(ExtendVisibility)
    show_served(app, served)
    lifecycle = Lifecycle(app, served)
    app.task(name=TASK, throws=(PairFailed,))(lifecycle.describe_pair)
    app.on_consuming, app.on_consumer_stopped = lifecycle.consuming, lifecycle.consumer_stopped
    signals.celeryd_init.connect(lifecycle.begin, weak=False)
    return app


class Lifecycle:
    """Follows one worker of the app by Celery's signals."""

    def __init__(self, app: Celery, served: Served) -> None:
        self._app = app
        self._served = served
        self._process: WorkerProcess | None = None

    def begin(self, instance: Any = None, options: dict[str, Any] | None = None, **_: Any) -> None:
        """The first that Celery tells of a worker: ``celeryd_init``."""
        if instance.app is not self._app:  # signals go to every app of a process
            return
        # Told to stop while it loads, a worker has nothing in flight; Celery's own handler comes with its consumer.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        given = options or {}
        set_up_worker_logging(given.get("loglevel"), given.get("logfile"))  # the model is loaded before Celery does it
        process = self._process = WorkerProcess(self._app, current_settings(), _model(), self._served, load)
        signals.setup_logging.connect(set_up_worker_logging, weak=False)
        signals.worker_init.connect(process.start, weak=False)
        signals.worker_shutting_down.connect(process.stop_taking, weak=False)
        signals.worker_shutdown.connect(process.finish, weak=False)

    def consuming(self) -> None:
        """The consumer starts, at first or again after a reconnection."""
        if self._process is not None:
            self._process.consuming()

    def consumer_stopped(self) -> None:
        """The consumer has lost its connection, or comes to its end."""
        if self._process is not None:
            self._process.consumer_stopped()

    def describe_pair(self, *args: Any, **keywords: Any) -> None:
        """The task: ``describe_pair(run uuid, pair id)``."""
        if self._process is not None:
            self._process.describe_pair(*args, **keywords)


class ExtendVisibility(bootsteps.StartStopStep):
    """Refreshes the messages and shards that this worker holds, so that only a dead worker's time out."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    _timer: Any = None

    def start(self, parent: Any) -> None:
        """Start with the consumer, again after each reconnection."""
        channel = parent.task_consumer.channel
        parent.app.on_consuming()

        def refresh() -> None:
            try:
                channel.extend_visibility()
            except channel.connection_errors:
                logging.getLogger(__name__).warning("cannot refresh the messages in flight: Redis is away")

        self._timer = parent.timer.call_repeatedly(current_settings().refresh_s, refresh)

    def stop(self, parent: Any) -> None:
        """End with the consumer."""
        parent.app.on_consumer_stopped()
        if self._timer is not None:  # a step before this one may have met a Redis that refuses
            self._timer.cancel()


class CannotStart(click.ClickException):
    """The settings do not hold; one line, as Celery's command shows it."""

    exit_code = EXIT_CANNOT_START

    def format_message(self) -> str:
        """As click says; what comes from data cannot steer the terminal."""
        return "\n".join(map(printable, self.message.split("\n")))


def set_up_worker_logging(loglevel: int | str | None = None, logfile: str | None = None, **_: Any) -> None:
    """As the settings say; ``-l`` and ``-f`` of Celery hold where they say nothing."""
    settings = current_settings()
    level = settings.log_level or loglevel or logging.INFO
    set_up_logging(level, settings.log_format, settings.log_file or logfile, force=True)


def _configuration(served: Served) -> dict[str, Any]:
    try:
        return worker_configuration(current_settings(), [_model().key], served)
    except FarmError as error:
        raise CannotStart(str(error)) from error
    except OSError as error:
        raise CannotStart(f"{error.filename or 'the system'}: {error.strerror or error}") from error


def _model() -> ModelIdentity:
    settings = current_settings()
    return identify_model(settings.model, settings.model_revision, settings.base_url)


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
