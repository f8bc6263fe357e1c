"""The Celery app and its settings, each with its reason. Producer and workers share it.

The reasons are measured: kombu's Redis transport gives a message back only after the visibility timeout and the next
sweep, delivers a long task again and again unless it is refreshed, and loses one now and then when it is killed between
two commands. So the database says what is done, and a message is only a hint that a pair waits.
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu import Queue
from kombu.transport import TRANSPORT_ALIASES

from app.queue import keys
from app.queue.embedded import EmbeddedBroker
from app.queue.publisher import Broker
from app.queue.shards import Served
from app.settings import SHARD_LEASE_S, Settings

for _name in (keys.TRANSPORT, f"{keys.TRANSPORT}s"):
    TRANSPORT_ALIASES[_name] = "app.queue.transport:Transport"  # imported when the first connection is made


def broker_url(settings: Settings) -> str:
    """REDIS_URL, else the embedded server's address. Starts nothing."""
    if settings.redis_url is not None:
        return settings.redis_url.get_secret_value()
    return embedded_broker(settings).url


def embedded_broker(settings: Settings) -> EmbeddedBroker:
    """The embedded server of this state folder, running or not."""
    return EmbeddedBroker(settings.state_dir.resolve() / "broker")


def ensure_broker(settings: Settings) -> bool:
    """Start the embedded server if it is needed and does not run; True if this call started it."""
    return settings.redis_url is None and embedded_broker(settings).ensure()


def check_broker(settings: Settings) -> None:
    """See whether the server at REDIS_URL will do; raises what no waiting mends. An embedded one always will."""
    if settings.redis_url is not None:
        broker = Broker(make_app(settings))
        broker.check()
        broker.close()


def make_app(settings: Settings, queues: list[str] | None = None) -> Celery:
    """A Celery app on the settings' broker, for publishing and looking at queues; ``queues`` are what it consumes."""
    app = Celery("farm", broker=broker_url(settings), set_as_current=False)
    app.conf.update(worker_configuration(settings, queues) if queues else _configuration(settings))
    return app


def worker_configuration(settings: Settings, queues: list[str], served: Served | None = None) -> dict[str, Any]:
    """The configuration of an app whose workers declare ``queues``, and look into the ``served`` lists."""
    configuration = _configuration(settings)
    if served is not None:
        served.queue = queues[0]
    configuration["broker_transport_options"]["served"] = served
    return {
        **configuration,
        "broker_url": broker_url(settings),
        "task_queues": [Queue(name, routing_key=name) for name in queues],
        "task_default_queue": queues[0],
    }


def _configuration(settings: Settings) -> dict[str, Any]:
    return {
        # Rows are in the database: no result backend, no result keys.
        "task_ignore_result": True,
        # The acknowledgement follows the commit; a kill in between means a second delivery, which finds the row.
        "task_acks_late": True,
        "task_acks_on_failure_or_timeout": True,
        "task_reject_on_worker_lost": True,
        # JSON alone: a message is data, never code.
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_create_missing_queues": True,
        # Threads that wait for one engine in the process: it mixes their pairs in its batches.
        "worker_pool": "threads",
        "worker_concurrency": settings.pairs_in_flight,
        # Reserve only what runs: what is reserved elsewhere waits while this worker idles.
        "worker_prefetch_multiplier": 1,
        "worker_cancel_long_running_tasks_on_connection_loss": False,  # threads cannot be cancelled
        "worker_hijack_root_logger": False,
        "worker_send_task_events": settings.events,  # Flower sees the pairs; else nobody reads them
        "task_send_sent_event": False,
        "worker_enable_remote_control": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # a Redis that is away for an hour is waited for
        "broker_transport_options": {
            "visibility_timeout": settings.visibility_timeout_s,
            "unacked_restore_interval": settings.sweep_s,
            "unacked_restore_throttle": 1,
            "shard_lease_s": SHARD_LEASE_S,
            "priority_steps": [0],  # one list a queue: BRPOP names them all each time
            "global_keyprefix": keys.PREFIX,
            "health_check_interval": 25,
            "socket_keepalive": True,
            "socket_connect_timeout": 5,
        },
        "task_publish_retry_policy": {
            "max_retries": 60, "interval_start": 0.2, "interval_step": 0.5, "interval_max": 5
        },
    }  # fmt: skip
