"""The queue: bulk messages are ordinary Celery messages, an image's pairs stay together, keys share one prefix."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import Consumer, Queue

from app.database.records import QueuedPair, Run
from app.queue.celery_app import make_app, worker_configuration
from app.queue.embedded import EmbeddedBroker
from app.queue.keys import PREFIX, TASK, run_lists, shard_lists
from app.queue.publisher import Broker, Publisher
from app.queue.shards import Served
from producer.run_request import Inputs
from tests.conftest import MakeSettings
from tests.support.runs import request_for
from tests.support.waits import wait_for

SHARDS = 4


@pytest.fixture
def run() -> Run:
    made = request_for().as_run(Inputs(Path("a"), Path("b"), Path("/images")))
    return Run(**{**made.__dict__, "uuid": "11111111-2222-3333-4444-555555555555"})


@pytest.fixture
def app(make_settings: MakeSettings, broker: EmbeddedBroker, run: Run) -> Celery:
    made = make_app(make_settings())
    made.conf.task_queues = [Queue(name, routing_key=name) for name in shard_lists(run.model_key, run.uuid, SHARDS)]
    return made


@pytest.fixture
def server(app: Celery) -> redis.Redis:
    return Broker(app).redis


@pytest.fixture
def publish(app: Celery, run: Run) -> Callable[[list[QueuedPair]], int]:
    return Publisher(Broker(app), run, SHARDS).publish


def messages(server: redis.Redis, run: Run) -> list[dict[str, Any]]:
    """All that waits, oldest first in each queue."""
    keys = [PREFIX + name for name in shard_lists(run.model_key, run.uuid, SHARDS)]
    return [json.loads(text) for key in keys for text in reversed(server.lrange(key, 0, -1))]


def shape(value: Any) -> Any:
    """A message without what differs from one to the next."""
    body = json.loads(b64decode(value["body"]))
    body[0][1] = "number"
    headers = {**value["headers"], "id": "id", "root_id": "id", "ignore_result": None}
    properties = {**value["properties"], "correlation_id": "id", "delivery_tag": "tag", "reply_to": "reply"}
    return {**value, "body": body, "headers": headers, "properties": properties}


def test_a_bulk_message_is_what_celery_itself_would_put_there(
    app: Celery, server: redis.Redis, publish: Callable[..., int], run: Run
) -> None:
    publish([QueuedPair(7, "1")])
    (ours,) = messages(server, run)
    server.flushall()
    queue = ours["properties"]["delivery_info"]["routing_key"]
    app.send_task(TASK, args=[run.uuid, 7], queue=queue, routing_key=queue)
    (theirs,) = messages(server, run)
    assert set(ours["headers"]) == set(theirs["headers"])
    theirs["properties"]["delivery_info"]["exchange"] = ours["properties"]["delivery_info"]["exchange"]
    assert shape(ours) == shape(theirs)
    assert json.loads(b64decode(ours["body"]))[0] == [run.uuid, 7]


def test_delivery_tags_are_unique_and_task_ids_follow_from_run_and_pair(
    server: redis.Redis, publish: Callable[..., int], run: Run, app: Celery
) -> None:
    pairs = [QueuedPair(number, str(number)) for number in range(50)]
    publish(pairs)
    Publisher(Broker(app), run, SHARDS).publish(pairs)
    found = messages(server, run)
    assert len({message["properties"]["delivery_tag"] for message in found}) == 100
    assert len({message["headers"]["id"] for message in found}) == 50


def test_an_images_pairs_share_a_queue_in_their_order(
    server: redis.Redis, publish: Callable[..., int], run: Run
) -> None:
    assert publish([QueuedPair(number, f"image {number // 5}") for number in range(200)]) == 200
    queues: dict[int, set[str]] = {}
    numbers: dict[str, list[int]] = {}
    for message in messages(server, run):
        queue, number = (
            message["properties"]["delivery_info"]["routing_key"],
            json.loads(b64decode(message["body"]))[0][1],
        )
        queues.setdefault(number // 5, set()).add(queue)
        numbers.setdefault(queue, []).append(number)
    assert {len(found) for found in queues.values()} == {1}
    assert len(numbers) == SHARDS
    assert all(found == sorted(found) for found in numbers.values())


def test_every_key_has_the_prefix(app: Celery, server: redis.Redis, publish: Callable[..., int], run: Run) -> None:
    publish([QueuedPair(1, "1")])
    with app.connection_for_read() as connection:
        consumer = Consumer(connection, app.conf.task_queues, callbacks=[lambda *_: None])
        with consumer:
            wait_for(lambda: drained(connection) and server.exists(PREFIX + "unacked"), "the message is taken")
            assert set(server.keys("*")) == set(server.keys(PREFIX + "*"))


def drained(connection: Any) -> bool:
    try:
        connection.drain_events(timeout=0.2)
    except TimeoutError:
        return False
    return True


def test_celerys_own_consumer_reads_and_acknowledges(
    app: Celery, server: redis.Redis, publish: Callable[..., int], run: Run
) -> None:
    publish([QueuedPair(number, str(number)) for number in range(9)])
    seen: list[int] = []

    def take(body: Any, message: Any) -> None:
        assert message.headers["task"] == TASK
        seen.append(body[0][1])
        message.ack()

    with app.connection_for_read() as connection, Consumer(connection, app.conf.task_queues, callbacks=[take]):
        wait_for(lambda: drained(connection) is not None and len(seen) == 9, "nine messages")
    assert sorted(seen) == list(range(9))
    assert server.hlen(PREFIX + "unacked") == 0


def test_who_waits_for_replies_on_a_workers_connection_gets_no_pairs(
    make_settings: MakeSettings, broker: EmbeddedBroker, run: Run, publish: Callable[..., int]
) -> None:
    served = Served()
    worker = Celery("worker", set_as_current=False)
    worker.conf.update(worker_configuration(make_settings(), [run.model_key], served))
    served.set([run_lists(run.model_key, run.uuid, SHARDS)])
    publish([QueuedPair(number, str(number)) for number in range(1, 10)])
    replies: list[Any] = []
    taken: list[Any] = []

    def take(body: Any, message: Any) -> None:
        taken.append(body)
        message.ack()

    with worker.connection_for_read() as connection:
        with Consumer(connection.channel(), [Queue("replies")], callbacks=[lambda body, _: replies.append(body)]):
            for _ in range(5):
                drained(connection)
        assert replies == []
        with Consumer(connection.channel(), worker.conf.task_queues, callbacks=[take]):
            wait_for(lambda: drained(connection) is not None and len(taken) == 9, "nine messages")


def test_what_waits_is_counted(app: Celery, publish: Callable[..., int], run: Run) -> None:
    broker = Broker(app)
    names = shard_lists(run.model_key, run.uuid, SHARDS)
    assert broker.waiting(names) == 0
    publish([QueuedPair(number, str(number)) for number in range(9)])
    assert broker.waiting(names) == 9
    assert broker.waiting(names[:0]) == 0


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\xff\xfe", b"no json", b"17", b"[]", b"null", b'"text"', b"{}", b'{"body": 1}',
     b'{"properties": {}}', b'{"properties": {"delivery_tag": "x"}}', b'{"body": "", "properties": null}'],
)  # fmt: skip
def test_a_foreign_element_in_a_queue_does_not_end_the_consumer(
    app: Celery, server: redis.Redis, publish: Callable[..., int], run: Run, garbage: bytes
) -> None:
    key = PREFIX + shard_lists(run.model_key, run.uuid, SHARDS)[0]
    seen: list[Any] = []

    def take(body: Any, message: Any) -> None:
        seen.append(body)
        message.ack()

    server.lpush(key, garbage)
    publish([QueuedPair(number, str(number)) for number in range(8)])
    with app.connection_for_read() as connection:
        consumer = Consumer(
            connection, app.conf.task_queues, callbacks=[take], on_decode_error=lambda message, _: message.ack()
        )
        with consumer:
            wait_for(lambda: drained(connection) is not None and len(seen) >= 8, "eight messages")
    assert server.llen(key) == 0
