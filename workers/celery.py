"""The Celery app of ``celery -A workers worker``: all that a worker is, from the environment's settings."""

from __future__ import annotations

import logging
import signal
import sys
from typing import Any

from celery import bootsteps, signals

from app.model_identity import identify_model
from app.queue.celery_app import all_queues, ensure_broker, make_app
from app.settings import current_settings
from workers.process import WorkerProcess

# Told to stop while it still loads, a worker has nothing in flight; Celery's own handler comes with its consumer.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

settings = current_settings()
model = identify_model(settings.model, settings.model_revision)
queues = [name for key in model.keys_served for name in all_queues(key, settings.queue_shards)]
ensure_broker(settings)
app = make_app(settings, queues)
WorkerProcess(app, settings, model).register()


class ExtendVisibility(bootsteps.StartStopStep):
    """Refreshes the messages and shards that this worker holds, so that only a dead worker's time out."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        """Begin with the consumer, again after each reconnection."""
        channel = parent.task_consumer.channel

        def refresh() -> None:
            try:
                channel.extend_visibility()
            except channel.connection_errors:
                logging.getLogger(__name__).warning("cannot refresh the messages in flight: Redis is away")

        self._timer = parent.timer.call_repeatedly(settings.refresh_s, refresh)

    def stop(self, parent: Any) -> None:
        """End with the consumer."""
        self._timer.cancel()


app.steps["consumer"].add(ExtendVisibility)


@signals.setup_logging.connect(weak=False)
def set_up_logging(loglevel: int | str = logging.INFO, logfile: str | None = None, **_: Any) -> None:
    """Plain lines with time, level and place; ``-l`` and ``-f`` of Celery hold."""
    logging.basicConfig(
        level=loglevel or logging.INFO,
        filename=logfile,
        format="%(asctime)s %(levelname)-8s %(name)s: %(message)s",
        force=True,
    )
    # One line a pair from Celery and one from kombu each would bury the rest; Flower has them as events.
    for name in ("celery.worker.strategy", "celery.app.trace", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


set_up_logging()  # Celery calls it later, but the model is loaded, and may fail to, before that
