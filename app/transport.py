"""kombu's Redis transport with four faults mended, each of them measured on kombu 5.7.

- An acknowledgement on a connection that is just being closed raised AttributeError, and the worker exited
  ("Unrecoverable error"); it is a connection error, which Celery recovers from.
- Anything but a task message in a queue (another program's list element) ended the consumer; it is dropped with a
  line in the log.
- A task longer than the visibility timeout was delivered again and again; ``QoS.refresh`` keeps a healthy worker's
  messages young, so that the timeout can be short and a killed worker's come back soon.
- Queues were drained in one order by every worker; ``StickyCycle`` lets each stay on the queue that it is at, so that
  an image's pairs reach one worker.
"""

from __future__ import annotations

import logging
import random
import time
from queue import Empty
from typing import Any

import redis
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis

log = logging.getLogger(__name__)

NAME = "farmredis"
TRANSPORT_ALIASES[NAME] = "app.transport:Transport"


class QoS(kombu_redis.QoS):
    """What this worker has taken and not acknowledged."""

    def refresh(self) -> int:
        """Make the messages in hand as young as if they had just come; gives how many there are."""
        held = list(self._delivered)
        if held:
            with self.channel.conn_or_acquire() as client:
                client.zadd(self.unacked_index_key, {tag: time.time() for tag in held}, xx=True)
        return len(held)


class Channel(kombu_redis.Channel):
    """A channel that outlives closed connections and foreign list elements."""

    QoS = QoS

    def _connparams(self, *args: Any, **options: Any) -> Any:
        if self.connection is None or getattr(self.connection, "client", None) is None:
            raise redis.ConnectionError("the channel is closed")
        return super()._connparams(*args, **options)

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # What was popped was no message; a pair behind it, if any, comes back by the database.
            log.warning("dropped a queue element that is no task message: %s: %s", type(error).__name__, error)
            raise Empty from None


class Transport(kombu_redis.Transport):
    """Known to kombu as ``farmredis``."""

    Channel = Channel


class StickyCycle:
    """Stay on a queue until it is empty, then go to the next in an order of this worker's own.

    kombu asks for an order before each BRPOP, and Redis takes the first queue that holds something.
    """

    def __init__(self, items: list[str] | None = None) -> None:
        self._items: list[str] = list(items or [])
        random.shuffle(self._items)

    def update(self, items: list[str]) -> None:
        """Take a new set of queues; those already known keep their places."""
        known = [item for item in self._items if item in items]
        new = [item for item in items if item not in known]
        random.shuffle(new)
        self._items = known + new

    def consume(self, number: int) -> list[str]:
        """The order in which to look."""
        return self._items[:number]

    def rotate(self, last_used: str) -> str:
        """The queue that gave something comes first; those before it were empty and go to the end."""
        if last_used in self._items:
            place = self._items.index(last_used)
            self._items = self._items[place:] + self._items[:place]
        return last_used
