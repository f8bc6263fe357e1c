"""What Flower's broker page and ``celery inspect active_queues`` list: the lists that a worker looks into.

Its consumer declares one queue for its model, which stays empty: runs have lists of their own (``app.queue.keys``).
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.worker.control import Panel

from app.queue.shards import Served

_COMMAND = "active_queues"


def show_served(app: Celery, served: Served) -> None:
    """Have the workers of this app tell of the lists that they serve, after the queue that they declared."""
    declared = Panel.data[_COMMAND]

    def active_queues(state: Any) -> list[dict[str, Any]]:
        queues: list[dict[str, Any]] = list(declared(state))
        if state.app is app:
            queues += [{"name": name} for lists in served.runs for name in lists]
        return queues

    Panel.data[_COMMAND] = active_queues
