"""What an enqueue, a repeat, a change and a retry put into the queue: each pending pair once."""

from __future__ import annotations

import json
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.database.claim_rows import claim_pair
from app.database.result_rows import forget_failures
from app.queue.celery_app import make_app
from app.queue.embedded import EmbeddedBroker
from app.queue.keys import PREFIX, run_lists
from app.queue.publisher import Broker
from producer.enqueue import publish
from producer.progress import Progress
from producer.run_request import Inputs
from tests.conftest import MakeSettings
from tests.support.desk import Desk, change
from tests.support.runs import claimant, describe, fail, write_inputs


class Queue:
    """The lists of the desk's runs in a real Redis that nobody consumes."""

    def __init__(self, desk: Desk, broker: Broker, shards: int) -> None:
        self._desk, self._broker, self._shards = desk, broker, shards

    def publish(self, name: str = "default") -> int:
        """What ``producer enqueue`` does in the end."""
        run = self._desk.run(name)
        return publish(self._desk.database, self._broker._app, run, self._shards, Progress(quiet=True), total=0)

    def messages(self, name: str = "default") -> Counter[int]:
        """Pair id -> its messages."""
        run = self._desk.run(name)
        lists = run_lists(run.model_key, run.uuid, self._shards)
        texts = [text for each in lists for text in self._broker.redis.lrange(PREFIX + each, 0, -1)]
        return Counter(json.loads(b64decode(json.loads(text)["body"]))[0][1] for text in texts)

    def take(self, name: str = "default") -> Counter[int]:
        """Workers take all of it."""
        found = self.messages(name)
        run = self._desk.run(name)
        self._broker.drop(run_lists(run.model_key, run.uuid, self._shards))
        return found


@pytest.fixture
def queue(desk: Desk, make_settings: MakeSettings, broker: EmbeddedBroker) -> Iterator[Queue]:
    """The queue of this test's own Redis."""
    opened = Broker(make_app(make_settings()))
    yield Queue(desk, opened, make_settings().queue_shards)
    opened.close()


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return write_inputs(tmp_path / "in", images=3, pairs=4)


def test_repeats_publish_nothing_twice_whatever_has_happened_in_between(
    desk: Desk, queue: Queue, inputs: Inputs
) -> None:
    desk.enqueue(inputs)
    assert queue.publish() == 12
    for _ in range(3):
        desk.enqueue(inputs)
        assert queue.publish() == 0
    assert set(queue.messages().values()) == {1}
    assert queue.messages().total() == 12
    first, second, third, *_ = desk.pending()
    with desk.database.begin() as connection:
        describe(connection, first)
        fail(connection, second, "model error")
    claim_pair(desk.database, (desk.run().uuid, third), claimant("busy"))
    queue.take()
    desk.enqueue(inputs)
    assert queue.publish() == 0, "they are in workers' hands, for all that is known"


def test_one_failure_that_is_retried_is_one_message(desk: Desk, queue: Queue, inputs: Inputs) -> None:
    desk.enqueue(inputs)
    queue.publish()
    queue.take()
    failed = desk.pending()[5]
    with desk.database.begin() as connection:
        fail(connection, failed, "model error")
        assert forget_failures(connection, desk.run()) == [failed]
    assert queue.publish() == 1
    assert queue.messages() == {failed: 1}
    assert queue.publish() == 0


def test_failures_of_outside_reasons_are_sent_again_by_a_plain_repeat_and_own_ones_not(
    desk: Desk, queue: Queue, inputs: Inputs
) -> None:
    desk.enqueue(inputs)
    queue.publish()
    queue.take()
    outside, own, *_ = desk.pending()
    with desk.database.begin() as connection:
        fail(connection, outside, "images are away")
        fail(connection, own, "image unreadable")
    assert desk.enqueue(inputs).resent == 1
    queue.publish()
    assert queue.take() == {outside: 1}
    assert desk.standing().failed == 1
    desk.enqueue(inputs)
    assert queue.publish() == 0


def test_one_changed_pair_is_one_message(desk: Desk, queue: Queue, inputs: Inputs) -> None:
    desk.enqueue(inputs)
    desk.describe()
    queue.publish()
    queue.take()
    change(inputs.images, lambda images: images[0]["objects"][1].update(bbox=[30, 30, 40, 40]))
    changed = desk.enqueue(inputs, update=True)
    assert (changed.stored.changed, changed.open, changed.texts.new) == (1, 1, 2)
    assert (queue.publish(), queue.publish()) == (1, 0)


def test_inputs_that_grow_publish_what_is_new(desk: Desk, queue: Queue, inputs: Inputs, tmp_path: Path) -> None:
    desk.enqueue(inputs)
    assert queue.publish() == 12
    write_inputs(tmp_path / "in", images=4, pairs=4)
    desk.enqueue(inputs, update=True)
    assert queue.publish() in (4, 16)  # the images were written anew, and are to be looked at again
    assert max(queue.messages().values()) <= 2
    assert len(queue.messages()) == 16


def test_a_lost_queue_is_published_whole_and_once(desk: Desk, queue: Queue, inputs: Inputs) -> None:
    desk.enqueue(inputs)
    queue.publish()
    desk.describe(most=5)
    queue._broker.redis.flushall()
    assert (queue.publish(), queue.publish()) == (7, 0)
    assert set(queue.messages().values()) == {1}


def test_two_runs_have_lists_of_their_own(desk: Desk, queue: Queue, inputs: Inputs) -> None:
    desk.enqueue(inputs, "one")
    desk.enqueue(inputs, "two")
    assert (queue.publish("one"), queue.publish("two")) == (12, 12)
    assert not set(queue.messages("one")) & set(queue.messages("two"))
