"""The queues: pairs published in bulk, and how many wait.

Celery's ``apply_async`` spends its time building one message after another. Here Celery and kombu build one message,
it is cut where a pair's own values stand, and filled in for each pair; what arrives in Redis has the same form, so that
any Celery worker and Flower read it.
"""

from __future__ import annotations

import json
import os
import uuid
import zlib
from base64 import b64encode
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

import redis
from celery import Celery
from kombu.serialization import dumps
from kombu.utils.functional import retry_over_time

from app.database.records import QueuedPair, Run
from app.errors import BROKER_AWAY
from app.queue import keys

_MESSAGES_A_PUSH = 500
_NAMESPACE = uuid.UUID("6f1d1f9c-5a56-4d86-9c53-0f4a3e0c7a11")
_ALL_BITS = (1 << 128) - 1
_PAIR_MARK = 987_654_321_987_654_321
_ID_MARK, _QUEUE_MARK, _TAG_MARK, _BODY_MARK = "@farm-id@", "@farm-queue@", "@farm-tag@", "@farm-body@"


class Broker:
    """Redis as this farm uses it: a connection of its own alongside Celery's, under the same key prefix."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._connection = app.connection_for_write()

    @property
    def redis(self) -> redis.Redis:
        """A client over kombu's pool: URL, TLS and timeouts are Celery's. Keys need ``keys.PREFIX``."""
        return redis.Redis(connection_pool=self._connection.default_channel.pool)

    def waiting(self, queues: Iterable[str]) -> int:
        """Messages in these queues that no worker has taken."""
        with self.redis.pipeline(transaction=False) as pipeline:
            for queue in queues:
                pipeline.llen(keys.PREFIX + queue)
            answers = pipeline.execute(raise_on_error=False)
        # A key of another type stands there until a worker puts it aside: no message is in it.
        others = [answer for answer in answers if isinstance(answer, Exception) and "WRONGTYPE" not in str(answer)]
        if others:
            raise others[0]
        return sum(answer for answer in answers if isinstance(answer, int))

    def epoch(self) -> str:
        """A name that this Redis has for as long as it does not lose what it holds."""
        with self.redis.pipeline() as pipeline:
            pipeline.set(keys.EPOCH, str(uuid.uuid4()), nx=True)
            pipeline.get(keys.EPOCH)
            return str(pipeline.execute()[1].decode())

    def drop(self, names: Iterable[str]) -> None:
        """Delete lists with what they hold."""
        self.redis.delete(*(keys.PREFIX + name for name in names))

    def push(self, lists: dict[str, list[str]]) -> None:
        """Append messages to queues, in as few round trips as it takes; waits out a Redis that is away."""

        def attempt() -> None:
            with self.redis.pipeline(transaction=False) as pipeline:
                for queue, messages in lists.items():
                    for start in range(0, len(messages), _MESSAGES_A_PUSH):
                        pipeline.lpush(keys.PREFIX + queue, *messages[start : start + _MESSAGES_A_PUSH])
                pipeline.execute()

        self.patiently(attempt)

    def patiently(self, action: Callable[[], Any]) -> Any:
        """Do ``action`` again until Redis answers, as long as Celery's publish policy says."""
        policy = self._app.conf.task_publish_retry_policy
        return retry_over_time(action, BROKER_AWAY, errback=None, **policy)

    def close(self) -> None:
        """Give the connection back."""
        self._connection.release()

    def render(self, run: Run) -> list[str]:
        """One task message of the run as kombu would put it, cut at the marks (every other piece is a mark)."""
        task = self._app.amqp.create_task_message(_ID_MARK, keys.TASK, args=[run.uuid, _PAIR_MARK], kwargs={})
        content_type, encoding, body = dumps(task.body, serializer="json")
        properties = {"delivery_mode": 2, **task.properties, "correlation_id": _ID_MARK}
        channel = self._connection.default_channel
        message = channel.prepare_message(body, 0, content_type, encoding, task.headers, properties)
        channel._inplace_augment_message(message, "", _QUEUE_MARK)  # kombu is pinned to 5.7; a test compares
        message["properties"]["delivery_tag"] = _TAG_MARK
        message["body"] = _BODY_MARK
        return _cut(json.dumps(message), _ID_MARK, _QUEUE_MARK, _TAG_MARK, _BODY_MARK, str(_PAIR_MARK))


class Publisher:
    """Puts pairs of one run into its lists, an image's pairs side by side in one of them."""

    def __init__(self, broker: Broker, run: Run, shards: int) -> None:
        self._broker = broker
        self._shards = keys.shard_lists(run.model_key, run.uuid, shards)
        self._redelivery = keys.redelivery_list(run.model_key, run.uuid)
        self._pieces = broker.render(run)
        embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
        self._body = _cut(json.dumps([[run.uuid, _PAIR_MARK], {}, embed]), str(_PAIR_MARK))
        self._first_id = uuid.uuid5(_NAMESPACE, run.uuid).int
        # Redis keeps what is unacknowledged by tag: two publications of a pair must not share one.
        self._tags = (f"{prefix}-{number}" for prefix in (os.urandom(12).hex(),) for number in count())

    def publish(self, pairs: Iterable[QueuedPair], *, again: bool = False) -> int:
        """Publish in the order given, with ``again`` before all that waits; gives how many."""
        lists: dict[str, list[str]] = defaultdict(list)
        for pair in pairs:
            queue = self._redelivery if again else self.queue_of(pair.image_id)
            lists[queue].append(self.message(pair.id, queue))
        self._broker.push(lists)
        return sum(map(len, lists.values()))

    def queue_of(self, image_id: str) -> str:
        """The queue that an image's pairs share."""
        return self._shards[zlib.crc32(image_id.encode("utf-8", "replace")) % len(self._shards)]

    def message(self, pair_id: int, queue: str) -> str:
        """One pair's message as it stands in Redis. Its task id follows from run and pair: logs can be searched."""
        number = str(pair_id)
        values = {
            _ID_MARK: str(uuid.UUID(int=(self._first_id + pair_id) & _ALL_BITS)),
            _QUEUE_MARK: queue,
            _TAG_MARK: next(self._tags),
            _BODY_MARK: b64encode(number.join(self._body[::2]).encode()).decode(),
            str(_PAIR_MARK): number,
        }
        return "".join([values.get(piece, piece) for piece in self._pieces])


def _cut(text: str, *marks: str) -> list[str]:
    pieces = [text]
    for mark in marks:
        cut: list[str] = []
        for piece in pieces:
            if piece in marks:
                cut.append(piece)
                continue
            parts = piece.split(mark)
            cut += [item for part in parts for item in (part, mark)][:-1]
        pieces = cut
    return pieces
