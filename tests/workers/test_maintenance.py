"""Housekeeping: what was lost goes back into the queue, once, and not while its holders may still come."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, update

from app.database.claim_rows import claim_pair
from app.database.publish_rows import begin_publishing, end_publishing
from app.database.run_rows import delete_run
from app.database.schema import claims
from app.queue.celery_app import make_app
from app.queue.embedded import EmbeddedBroker
from app.queue.keys import PREFIX, run_lists
from app.queue.publisher import Broker
from app.queue.shards import Served
from app.settings import Settings
from tests.conftest import MakeSettings
from tests.support.runs import StoredRun, claimant, describe, pair, store_run
from workers.identity import WorkerIdentity
from workers.maintenance import Maintenance


@pytest.fixture
def stored(database: Engine) -> StoredRun:
    return store_run(database, [pair(number) for number in range(4)])


@pytest.fixture
def settings(make_settings: MakeSettings, broker: EmbeddedBroker) -> Settings:
    return make_settings(lease_s=2.0, sweep_s=0.1)


@pytest.fixture
def queue(settings: Settings) -> Iterator[Broker]:
    opened = Broker(make_app(settings))
    yield opened
    opened.close()


def waiting(queue: Broker, stored: StoredRun, settings: Settings) -> int:
    return queue.waiting(run_lists(stored.run.model_key, stored.run.uuid, settings.queue_shards))


def expire(database: Engine) -> None:
    with database.begin() as connection:
        connection.execute(update(claims).values(lease_until=1.0))


class Hands:
    """The process's pairs, as far as housekeeping asks."""

    def __init__(self) -> None:
        self.pairs: list[int] = []
        self.takeover = True
        self.away = 0
        self.of_runs: set[int] = set()
        self.abandoned: list[int] = []

    def held(self) -> list[int]:
        return self.pairs

    def in_flight(self) -> int:
        return len(self.pairs)

    def runs(self) -> set[int]:
        return self.of_runs

    def abandon(self, run_id: int) -> int:
        self.abandoned.append(run_id)
        return 0

    def may_take_over(self) -> bool:
        return self.takeover

    def note_database_away(self) -> None:
        self.away += 1


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def served() -> Served:
    return Served()


@pytest.fixture
def keeper(
    settings: Settings, database: Engine, queue: Broker, hands: Hands, stored: StoredRun, served: Served
) -> Maintenance:
    worker = WorkerIdentity("a", (stored.run.model_key,), "the model's hash")
    return Maintenance(settings, database, queue, hands, served, worker, when_stalled=lambda: None)


def claim(database: Engine, stored: StoredRun, worker: str, *places: int) -> None:
    for at in places:
        claim_pair(database, (stored.run.uuid, stored.ids[at]), claimant(worker))


def test_pairs_of_a_vanished_worker_go_back_once(
    keeper: Maintenance, database: Engine, queue: Broker, stored: StoredRun, settings: Settings
) -> None:
    claim(database, stored, "gone", 0, 1, 2)
    assert keeper.sweep() == 1, "the one that nobody has begun"
    expire(database)
    assert keeper.sweep() == 3
    assert waiting(queue, stored, settings) == 4
    assert keeper.sweep() == 0
    redelivered = run_lists(stored.run.model_key, stored.run.uuid, settings.queue_shards)[0]
    assert queue.redis.llen(PREFIX + redelivered) == 3, "before all that waits"


def test_what_waits_to_be_delivered_again_is_not_published_once_more(
    keeper: Maintenance, database: Engine, queue: Broker, stored: StoredRun, settings: Settings
) -> None:
    claim(database, stored, "gone", 0, 1, 2, 3)
    expire(database)
    assert keeper.sweep() == 4
    expire(database)  # a slow worker: what was put back waits for longer than AGAIN_AFTER_S
    assert keeper.sweep() == 0
    claim(database, stored, "gone as well", 1)
    expire(database)
    assert keeper.sweep() == 1, "who vanishes meanwhile is replaced"
    queue.drop(run_lists(stored.run.model_key, stored.run.uuid, settings.queue_shards))
    expire(database)
    assert keeper.sweep() == 4, "what was lost on its way is"


def test_after_an_outage_holders_come_first(
    keeper: Maintenance, database: Engine, stored: StoredRun, hands: Hands
) -> None:
    claim(database, stored, "there", 0, 1, 2, 3)
    expire(database)
    hands.takeover = False
    assert keeper.sweep() == 0
    hands.takeover = True
    assert keeper.sweep() == 4


def test_what_was_never_published_is_and_once(
    keeper: Maintenance, database: Engine, queue: Broker, stored: StoredRun, settings: Settings
) -> None:
    claim(database, stored, "there", 0)
    with database.begin() as connection:
        describe(connection, stored.ids[1], worker="b")
    assert [keeper.sweep() for _ in range(4)] == [2, 0, 0, 0]
    assert waiting(queue, stored, settings) == 2


def test_a_lost_queue_is_known_by_its_epoch_and_filled_at_once(
    keeper: Maintenance, queue: Broker, stored: StoredRun, settings: Settings
) -> None:
    assert keeper.sweep() == 4
    queue.redis.flushall()
    assert [keeper.sweep() for _ in range(3)] == [4, 0, 0]
    assert waiting(queue, stored, settings) == 4


def test_messages_that_were_lost_one_by_one_are_published_again_but_not_at_the_first_look(
    keeper: Maintenance, queue: Broker, stored: StoredRun, settings: Settings
) -> None:
    assert keeper.sweep() == 4
    for name in run_lists(stored.run.model_key, stored.run.uuid, settings.queue_shards):
        queue.redis.delete(PREFIX + name)  # taken by workers, for all that can be seen
    assert [keeper.sweep() for _ in range(3)] == [0, 4, 0]
    assert waiting(queue, stored, settings) == 4


def test_a_queue_that_holds_something_is_not_lost(keeper: Maintenance, queue: Broker, stored: StoredRun,
                                                  settings: Settings) -> None:  # fmt: skip
    keeper.sweep()
    lists = run_lists(stored.run.model_key, stored.run.uuid, settings.queue_shards)
    for name in lists:
        queue.redis.delete(PREFIX + name)
    queue.redis.lpush(PREFIX + lists[3], "a message")
    assert [keeper.sweep() for _ in range(4)] == [0] * 4


def test_a_run_that_another_process_publishes_is_left_to_it(
    keeper: Maintenance, database: Engine, stored: StoredRun
) -> None:
    assert begin_publishing(database, stored.run, "epoch", "a producer", 60.0) == 0
    assert [keeper.sweep() for _ in range(3)] == [0] * 3
    end_publishing(database, stored.run, "a producer")
    assert keeper.sweep() == 4


def test_a_worker_that_serves_nobody_says_so_once_at_every_log_level(
    keeper: Maintenance, database: Engine, stored: StoredRun, caplog: pytest.LogCaptureFixture
) -> None:
    keeper.sweep()
    assert "no run wants this model" not in caplog.text
    with database.begin() as connection:
        delete_run(connection, stored.run)
    keeper.sweep()
    keeper.sweep()
    said = [each for each in caplog.records if "no run wants this model" in each.message]
    assert [each.levelname for each in said] == ["WARNING"]


def test_pairs_of_a_deleted_run_are_let_go(
    keeper: Maintenance, database: Engine, hands: Hands, stored: StoredRun
) -> None:
    hands.of_runs = {stored.run.id}
    keeper.sweep()
    assert hands.abandoned == []
    with database.begin() as connection:
        delete_run(connection, stored.run)
    keeper.sweep()
    assert hands.abandoned == [stored.run.id]


def test_runs_of_other_models_are_left_alone(
    keeper: Maintenance, database: Engine, queue: Broker, settings: Settings, served: Served
) -> None:
    other = store_run(database, [pair(0)], "other", model="other/model")
    claim(database, other, "gone", 0)
    expire(database)
    taken = sum(keeper.sweep() for _ in range(3))
    assert taken == 4  # the fixture's own, that no message stands for
    assert waiting(queue, other, settings) == 0
    assert [key for key in queue.redis.keys("*") if other.run.uuid[:13] in str(key)] == []
    assert len(served.runs) == 1
