"""Whatever lies in a queue: it takes no place, ends no worker, and is found among the dead letters."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.queue.dead_letters import KEPT, buried
from app.queue.keys import DEAD_LETTERS, PREFIX
from app.queue.publisher import Broker, Publisher
from app.results.status import status
from producer.enqueue import prepare, publish
from producer.progress import Progress
from tests.support.farm import QUICK, Farm
from tests.support.odd_messages import odd_messages, readable_messages
from tests.support.runs import request_for, write_inputs
from tests.support.servers import SqliteFile
from tests.support.waits import wait_for

UNACKED = f"{PREFIX}unacked", f"{PREFIX}unacked_index"


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Farm]:
    """One worker, four pairs at once: four messages that are held make it deaf."""
    folder = tmp_path_factory.mktemp("garbage")
    with Farm(folder, SqliteFile(folder / "farm.sqlite"), model=tiny_model, **QUICK) as farm:
        farm.start_worker()
        yield farm


def test_garbage_of_every_form_is_buried_and_the_pairs_are_described(farm: Farm, tmp_path: Path) -> None:
    quiet, inputs = Progress(quiet=True), write_inputs(tmp_path, images=4, pairs=2)
    prepared = prepare(farm.database, request_for("default", model=farm.settings.model), inputs, quiet)
    publisher = Publisher(Broker(farm.app), prepared.run, farm.settings.queue_shards)
    queue = publisher.queue_of("1")
    good = json.loads(publisher.message(10**9, queue))  # of a pair that is not there
    odd = list(odd_messages(good))
    farm.redis.lpush(PREFIX + queue, *odd, *readable_messages(good))  # before the pairs, which come through alone
    farm.redis.lpush(PREFIX + prepared.run.model_key, b"garbage", b"{}")
    for broadcast in (b"{}", b'{"properties": 5}', b"[]", b"[[[", b'{"properties": {"delivery_tag": []}, "body": 1}'):
        farm.redis.publish(f"{PREFIX}/0.celery.pidbox", broadcast)
    publish(farm.database, farm.app, prepared.run, farm.settings.queue_shards, quiet, total=8)
    assert farm.wait_done().done == 8
    wait_for(lambda: not farm.redis.llen(PREFIX + queue), "the queue is drained")
    wait_for(lambda: not farm.redis.exists(*UNACKED), "nothing is held unacknowledged")
    assert farm.workers[0].alive
    assert status(farm.database, farm.app, farm.settings.queue_shards).dead_letters == buried(farm.redis)
    assert buried(farm.redis) >= len(odd)
    letter = json.loads(farm.redis.lrange(DEAD_LETTERS, 0, 0)[0])
    assert set(letter) == {"at", "list", "reason", "bytes", "begins"}
    assert max(map(len, farm.redis.lrange(DEAD_LETTERS, 0, -1))) < 20_000


def test_a_flood_of_garbage_is_counted_and_not_kept(farm: Farm) -> None:
    queue, before = PREFIX + farm.run().model_key, buried(farm.redis)
    farm.redis.lpush(queue, *[b"flood"] * (KEPT + 50))
    wait_for(lambda: buried(farm.redis) == before + KEPT + 50, "all are counted")
    assert farm.redis.llen(DEAD_LETTERS) == KEPT


def test_what_is_held_and_no_message_is_let_go(farm: Farm, tmp_path: Path) -> None:
    held = [b"garbage", b"[]", b"[1, 2, 3]", b'[{}, "", 5]', b'[{}, "", "no-list"]', b"[" * 1000]
    for element in held:
        tag = os.urandom(8).hex()
        farm.redis.hset(UNACKED[0], tag, element)
        farm.redis.zadd(UNACKED[1], {tag: 1})
    farm.redis.zadd(UNACKED[1], {"a tag of nothing": 1})
    wait_for(lambda: not farm.redis.exists(*UNACKED), "nothing is held")
    farm.enqueue(write_inputs(tmp_path, images=1, pairs=2), "after")
    assert farm.wait_done("after").done == 2
    assert farm.workers[0].alive


def test_keys_of_another_type_are_put_aside(farm: Farm, tmp_path: Path) -> None:
    for key in (*UNACKED, DEAD_LETTERS):
        farm.redis.delete(key)
        farm.redis.set(key, "no message")
    farm.redis.lpush(f"{PREFIX}{farm.run('default').model_key}", b"garbage")
    farm.enqueue(write_inputs(tmp_path, images=2, pairs=2), "aside")
    assert farm.wait_done("aside").done == 4
    assert farm.workers[0].alive
