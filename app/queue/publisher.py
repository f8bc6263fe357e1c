"""The queues: pairs published in bulk, and how many wait.

Celery's ``apply_async`` spends its time building one message after another. Here Celery and kombu build one message,
it is cut where a pair's own values stand, and filled in for each pair; what arrives in Redis has the same form, so that
any Celery worker and Flower read it.
"""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
import zlib
from base64 import b64encode
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any

import redis
from celery import Celery
from kombu import Connection
from kombu.serialization import dumps

from app.database.records import QueuedPair, Run
from app.queue import keys
from app.queue.client import (
    BROKER_AWAY,
    explain,
    lasts,
    open_client,
    refuse_other_encryption,
    refuse_wrong_server,
    where,
)
from app.queue.dead_letters import buried

log = logging.getLogger(__name__)

_MESSAGES_A_PUSH = 500
_MESSAGES_A_TRIP = 1000  # about 2 MB, which a slow line takes before the server is thought away
_NAMESPACE = uuid.UUID("6f1d1f9c-5a56-4d86-9c53-0f4a3e0c7a11")
_ALL_BITS = (1 << 128) - 1
_PAIR_MARK = 987_654_321_987_654_321
_ID_MARK, _QUEUE_MARK, _TAG_MARK, _BODY_MARK = "@farm-id@", "@farm-queue@", "@farm-tag@", "@farm-body@"
_PATIENCE_S = 5.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _SAY_EVERY_S = 0.2, 2.0, 15.0


class Broker:
    """Redis as this farm uses it: a connection of its own alongside Celery's, under the same key prefix."""

    def __init__(self, app: Celery, *, patience_s: float = _PATIENCE_S) -> None:
        """``patience_s``: how long what is published waits for a server that is away or refuses it."""
        self._app = app
        self._patience_s = patience_s
        self.redis = open_client(app.conf.broker_url)
        """Connects with the first command; keys need ``keys.PREFIX``."""

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
        # Looked for first: a full server takes no SET, even if it would change nothing.
        while not isinstance(found := self.redis.get(keys.EPOCH), bytes):
            self.redis.set(keys.EPOCH, str(uuid.uuid4()), nx=True)
        return found.decode()

    def drop(self, names: Iterable[str]) -> None:
        """Delete lists with what they hold."""
        self.redis.delete(*(keys.PREFIX + name for name in names))

    def push(self, lists: dict[str, list[str]]) -> None:
        """Append messages to queues in few round trips, each once; waits as ``patiently`` says."""
        left = [
            (keys.PREFIX + queue, messages[start : start + _MESSAGES_A_PUSH])
            for queue, messages in lists.items()
            for start in range(0, len(messages), _MESSAGES_A_PUSH)
        ]

        def attempt() -> None:
            while left:
                trip = list(_up_to(_MESSAGES_A_TRIP, left))
                with self.redis.pipeline(transaction=False) as pipeline:
                    for queue, messages in trip:
                        pipeline.lpush(queue, *messages)
                    answers = pipeline.execute(raise_on_error=False)
                errors = [answer for answer in answers if isinstance(answer, Exception)]
                refused = [push for push, answer in zip(trip, answers, strict=True) if isinstance(answer, Exception)]
                left[: len(trip)] = refused
                if errors:
                    raise errors[0]

        self.patiently(attempt)

    def patiently(self, action: Callable[[], Any]) -> Any:
        """Do ``action`` again until Redis takes it, and say meanwhile what is waited for.

        Raises what Redis said: once patience is over, or at once where no waiting mends it.
        """
        began, said, pause = time.monotonic(), float("-inf"), _FIRST_PAUSE_S
        while True:
            try:
                return action()
            except BROKER_AWAY as error:
                refuse_other_encryption(self.redis, error)
                if lasts(error) or time.monotonic() - began > self._patience_s:
                    raise
                if time.monotonic() - said >= _SAY_EVERY_S:
                    said = time.monotonic()
                    log.warning("waiting for Redis at %s: %s", where(self.redis), explain(error))
            time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE_S)

    def check(self) -> None:
        """See whether this server will do, before any work is put into what goes there.

        Raises what no waiting mends; what may pass is said, for publishing will wait for it.
        """
        probe = f"{keys.PREFIX}probe"
        try:
            refuse_wrong_server(self.redis)
            with self.redis.pipeline() as pipeline:  # as one transaction, so that nobody ever sees it
                pipeline.lpush(probe, "")
                pipeline.llen(probe)
                pipeline.delete(probe)
                pipeline.set(keys.EPOCH, str(uuid.uuid4()), nx=True)
                pipeline.get(keys.EPOCH)
                pipeline.execute()
        except redis.RedisError as error:
            refuse_other_encryption(self.redis, error)
            if lasts(error):
                raise
            log.warning(
                "Redis at %s takes nothing yet: %s; publishing will wait for it", where(self.redis), explain(error)
            )

    def dead_letters(self) -> int:
        """How many elements of queues could not be read."""
        return buried(self.redis)

    def close(self) -> None:
        """Give the connections back."""
        self.redis.close()
        self.redis.connection_pool.disconnect()

    def render(self, run: Run) -> list[str]:
        """One task message of the run as kombu would put it, cut at the marks (every other piece is a mark)."""
        task = self._app.amqp.create_task_message(_ID_MARK, keys.TASK, args=[run.uuid, _PAIR_MARK], kwargs={})
        content_type, encoding, body = dumps(task.body, serializer="json")
        properties = {"delivery_mode": 2, **task.properties, "correlation_id": _ID_MARK}
        channel = Connection("memory://").default_channel  # the form is every virtual transport's
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


def _up_to(most: int, pushes: list[tuple[str, list[str]]]) -> Iterator[tuple[str, list[str]]]:
    """The first pushes, of so many messages together, or one more than fit."""
    for push in pushes:
        yield push
        most -= len(push[1])
        if most <= 0:
            return


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
