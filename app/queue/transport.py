"""kombu's Redis transport with its faults mended, each of them measured on kombu 5.7.

- An acknowledgement on a connection that is just being closed raised AttributeError, and the worker exited
  ("Unrecoverable error"); it is a connection error, which Celery recovers from.
- Anything but a task message in a queue ended the consumer, or was held for ever and took one of the worker's places;
  it goes to the dead letters before kombu sees it.
- A Redis that answers and says no (full, read-only, a command that is not allowed) ended the worker, and its model was
  loaded again. That is a lost connection now, which Celery waits out; and a full Redis is drained all the same: what is
  taken needs no room there, for the database knows it.
- A task longer than the visibility timeout was delivered again and again; ``QoS.refresh`` keeps a healthy worker's
  messages fresh, so that the timeout can be short and a killed worker's come back soon.
- Several workers that consume from several queues took turns on all of them; ``app.queue.shards`` lets each drain its
  own.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from queue import Empty
from typing import Any

import redis
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual

from app.queue import keys
from app.queue.client import explain
from app.queue.dead_letters import bury
from app.queue.messages import Unreadable, read_message
from app.queue.shards import QueueCycle, RedisLeases

log = logging.getLogger(__name__)

_ODD = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)
"""What code that expects a message raises over something else."""


class QoS(kombu_redis.QoS):
    """What this worker has taken and not acknowledged.

    Redis notes it, too, so that it comes back where a worker is lost; but a Redis that refuses the note does not keep
    the pair from being described: the database finds what was lost.
    """

    def append(self, message: Any, delivery_tag: str) -> None:
        """Hold a message."""
        try:
            super().append(message, delivery_tag)
        except redis.ResponseError as error:
            log.warning("Redis does not note what is in flight, going on without: %s", error)
            virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Let go of a message that is done."""
        try:
            super().ack(delivery_tag)
        except redis.ResponseError as error:
            log.warning("Redis does not take an acknowledgement, the message will come once more: %s", error)
            virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Let go of a message, or put it back."""
        try:
            super().reject(delivery_tag, requeue=requeue)
        except redis.ResponseError as error:
            log.warning("Redis does not take a message back, the database will: %s", error)
            virtual.QoS.ack(self, delivery_tag)

    def restore_visible(self, *args: Any, **options: Any) -> None:
        """Put back what other workers took and let go stale; later, where Redis cannot now."""
        try:
            super().restore_visible(*args, **options)
        except redis.ResponseError as error:
            log.warning("Redis does not put stale messages back, trying again: %s", error)

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """Put one message back; what stands in its place and is none becomes a dead letter."""
        with self.channel.conn_or_acquire(client) as connection:
            stored = connection.hget(self.unacked_key, tag)
            if stored is None or _is_held_message(stored):
                super().restore_by_tag(tag, connection, leftmost)
                return
            self._remove_from_indices(tag).execute()
        self.channel.bury(stored, self.unacked_key, "held by nobody and no message")

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
        if self._served is not None:
            try:
                self._refuse_what_refuses()
            except BaseException:
                self.close()
                raise

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

    def _brpop_read(self, **options: Any) -> bool:
        """Take what Redis answered; as kombu's, but nothing that lies in a list is taken for a message unread."""
        connection = self.client.connection
        try:
            name, element = self._popped(connection, **options)
            try:
                self._deliver(name, element)
            except Unreadable as error:
                self.bury(element, name, str(error))
                raise Empty from None
            self._queue_cycle.rotate(name)
            return True
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()

    def _popped(self, connection: Any, **options: Any) -> tuple[str, bytes]:
        """A list's name and its element. Raises Empty, and what a lost connection raises."""
        try:
            answer = self.client.parse_response(connection, "BRPOP", **options)
        except redis.ResponseError as error:
            if "WRONGTYPE" not in str(error):
                connection.disconnect()
                raise
            self._quarantine_foreign_keys(self._queue_cycle.consume(0))
            raise Empty from None
        except self.connection_errors:
            connection.disconnect()
            raise
        if not answer:
            raise Empty
        return answer[0].decode(), answer[1]

    def _deliver(self, name: str, element: bytes) -> None:
        """Hand a list's element to whoever consumes it. Raises Unreadable."""
        if self.connection.serves(name):
            self.connection._deliver(read_message(element, name), name)
            return
        try:  # a reply to a worker that says hello, say: Celery's own, which nobody waits for in vain for long
            self.connection._deliver(json.loads(element), name)
        except _ODD as error:
            raise Unreadable(f"not read by Celery ({type(error).__name__})") from None

    def _receive_one(self, client: Any) -> Any:
        """What was broadcast to the workers, which anybody may do."""
        try:
            return super()._receive_one(client)
        except _ODD as error:
            log.warning("dropped a broadcast that is no message: %s: %.200s", type(error).__name__, error)
            raise Empty from None

    def bury(self, element: bytes, name: str, reason: str) -> None:
        """Note what was taken and cannot be read."""
        with self._plain_client() as client:
            bury(client, element, name, reason)

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        """Note who wants an exchange's messages; a full Redis cannot, and only Celery's own chatter needs it."""
        try:
            super()._queue_bind(exchange, routing_key, pattern, queue)
        except redis.exceptions.OutOfMemoryError as error:
            log.warning("Redis is full, remote control may not work: %s", error)

    def _refuse_what_refuses(self) -> None:
        """Raise redis.ConnectionError, upon which Celery waits, where this server would refuse what a worker does.

        None of the commands changes anything. A full server may refuse to note what is in flight.
        """
        prefix = self.global_keyprefix
        held = [prefix + self.unacked_index_key, prefix + self.unacked_key]
        with self._plain_client() as client, client.pipeline(transaction=False) as pipeline:
            pipeline.brpop([f"{prefix}probe"], timeout=0.001)
            pipeline.zrem(held[0], "")
            pipeline.hdel(held[1], "")
            pipeline.zadd(held[0], {"": 0}, xx=True)
            answers = pipeline.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, Exception) and not isinstance(answer, redis.exceptions.OutOfMemoryError):
                if "WRONGTYPE" not in str(answer):
                    raise redis.ConnectionError(f"Redis refuses what a worker needs: {explain(answer)}") from None
                self._quarantine_foreign_keys([self.unacked_index_key, self.unacked_key])

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
        """Rename the keys that have a name of ours and another type; nothing could be taken while they stand there."""
        with self._plain_client() as client:
            for queue in queues:
                key = f"{self.global_keyprefix}{queue}"
                wanted = {self.unacked_key: "hash", self.unacked_index_key: "zset"}.get(queue, "list")
                if client.type(key) not in (wanted.encode(), b"none"):
                    client.rename(key, self.global_keyprefix + keys.quarantined(queue))
                    log.warning("%s is no %s and was renamed to quarantined:%s: who writes it?", key, wanted, queue)


class Transport(kombu_redis.Transport):
    """Known to kombu as ``redis``."""

    Channel = Channel
    # What Redis refuses now it may take later: Celery connects again, and waits for a server that takes it.
    connection_errors = (*kombu_redis.Transport.connection_errors, redis.ResponseError)

    consumed: str | None = None  # the queue that a consumer declared for all of the served lists

    def serves(self, name: str) -> bool:
        """Whether a list holds task messages, for the consumer that declared one queue for all of them."""
        return self.consumed is not None and (name == self.consumed or name not in self._callbacks)

    def _deliver(self, message: Any, queue: str) -> None:
        """A consumer declares one queue for its model and gets what any of the served lists holds."""
        super()._deliver(message, queue if queue in self._callbacks or self.consumed is None else self.consumed)


def _is_held_message(stored: bytes) -> bool:
    """Whether this is what kombu keeps of a message in flight: itself, its exchange, its list."""
    try:
        held = json.loads(stored)
    except (ValueError, RecursionError):
        return False
    return isinstance(held, list) and len(held) == 3 and isinstance(held[0], dict) and isinstance(held[2], str)
