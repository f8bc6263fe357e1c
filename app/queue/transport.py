"""kombu's Redis transport with four faults mended, each of them measured on kombu 5.7.

- An acknowledgement on a connection that is just being closed raised AttributeError, and the worker exited
  ("Unrecoverable error"); it is a connection error, which Celery recovers from.
- Anything but a task message in a queue (another program's list element) ended the consumer; it is dropped with a
  line in the log.
- A task longer than the visibility timeout was delivered again and again; ``QoS.refresh`` keeps a healthy worker's
  messages fresh, so that the timeout can be short and a killed worker's come back soon.
- Several workers that consume from several queues took turns on all of them; ``app.queue.shards`` lets each drain its
  own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from queue import Empty
from typing import Any

import redis
from kombu.transport import redis as kombu_redis

from app.queue import keys
from app.queue.shards import QueueCycle, RedisLeases

log = logging.getLogger(__name__)


class QoS(kombu_redis.QoS):
    """What this worker has taken and not acknowledged."""

    def refresh(self) -> int:
        """Make the messages in flight as fresh as if they had just come; gives how many there are."""
        held = [tag for tag in list(self._delivered) if tag not in self._dirty]
        if held:
            with self.channel.conn_or_acquire() as client:
                client.zadd(self.unacked_index_key, {tag: time.time() for tag in held}, xx=True)
        return len(held)


class Channel(kombu_redis.Channel):
    """A channel that outlives closed connections and foreign list elements."""

    QoS = QoS
    from_transport_options = (*kombu_redis.Channel.from_transport_options, "shard_lease_s")
    shard_lease_s: int

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        leases = RedisLeases(self._plain_client, self.global_keyprefix, lease_s=self.shard_lease_s)
        self._served = self.connection.client.transport_options.get("served")
        self._queue_cycle = QueueCycle(leases, self._runs_low, self._served)

    def basic_consume(self, queue: str, *args: Any, **options: Any) -> Any:
        """Consume a queue, or in its place the lists that are served."""
        tag = super().basic_consume(queue, *args, **options)
        if self._served is not None and queue == self._served.queue:
            self.connection.consumed = queue
        return tag

    def extend_visibility(self) -> None:
        """Refresh the messages in flight and the leases of the shards that this worker drains."""
        self.qos.refresh()
        self._queue_cycle.renew()

    def _runs_low(self) -> bool:
        """Whether less than a quarter of what this worker may have in flight is there."""
        # kombu forgets what was acknowledged only with the next message that comes.
        in_flight, most = len(self.qos._delivered) - len(self.qos._dirty), int(self.qos.prefetch_count)
        return 4 * in_flight < max(most, 1)

    @contextmanager
    def _plain_client(self) -> Iterator[redis.Redis]:
        # Alongside the connection that waits in BRPOP, and without kombu's key prefix, which it knows for few commands.
        yield redis.Redis(connection_pool=self.pool)

    def _connparams(self, *args: Any, **options: Any) -> Any:
        if self.connection is None or getattr(self.connection, "client", None) is None:
            raise redis.ConnectionError("the channel is closed")
        return super()._connparams(*args, **options)

    def _do_restore_message(
        self, payload: Any, _exchange: str, routing_key: str, pipe: Any, leftmost: bool = False
    ) -> None:
        """What a dead or stopping worker had in flight goes before all that waits, for whoever comes next."""
        super()._do_restore_message(payload, "", keys.redelivery_of(routing_key), pipe, leftmost)

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except redis.ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            self._quarantine_foreign_keys(self._queue_cycle.consume(0))
            raise Empty from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            # What was popped was no message; a pair behind it, if any, comes back by the database.
            log.warning("dropped a queue element that is no task message: %s: %s", type(error).__name__, error)
            raise Empty from None

    def _size(self, queue: str) -> int:
        """Messages in a queue; asked for when a worker starts to consume."""
        try:
            return int(super()._size(queue))
        except redis.ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            self._quarantine_foreign_keys([queue])
            return 0

    def _quarantine_foreign_keys(self, queues: Iterable[str]) -> None:
        """Rename the keys that have a queue's name and are no list; nothing could be taken while they stand there."""
        with self._plain_client() as client:
            for queue in queues:
                key = f"{self.global_keyprefix}{queue}"
                if client.type(key) not in (b"list", b"none"):
                    client.rename(key, self.global_keyprefix + keys.quarantined(queue))
                    log.warning("%s is no list and was renamed to quarantined:%s: who writes it?", key, queue)


class Transport(kombu_redis.Transport):
    """Known to kombu as ``redis``."""

    Channel = Channel

    consumed: str | None = None  # the queue that a consumer declared for all of the served lists

    def _deliver(self, message: Any, queue: str) -> None:
        """A consumer declares one queue for its model and gets what any of the served lists holds."""
        super()._deliver(message, queue if queue in self._callbacks or self.consumed is None else self.consumed)
