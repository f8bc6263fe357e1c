"""Housekeeping: what was lost goes back into the queue, once, and not while its holders may still come."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, update

from app.database.claim_rows import claim_pair
from app.database.result_rows import write_result
from app.database.schema import claims
from app.queue.celery_app import KEY_PREFIX, all_queues, make_app
from app.queue.embedded import EmbeddedBroker
from app.queue.publisher import Broker, Publisher, producing_key
from app.settings import Settings
from tests.conftest import MakeSettings
from tests.support.runs import StoredRun, described, pair, store_run
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
    return queue.waiting(all_queues(stored.run.model_key, settings.queue_shards))


def expire(database: Engine) -> None:
    with database.begin() as connection:
        connection.execute(update(claims).values(lease_until=1.0))


class Hands:
    """The process's pairs, as far as housekeeping asks."""

    def __init__(self) -> None:
        self.pairs: list[int] = []
        self.takeover = True
        self.away = 0

    def held(self) -> list[int]:
        return self.pairs

    def in_flight(self) -> int:
        return len(self.pairs)

    def may_take_over(self) -> bool:
        return self.takeover

    def note_database_away(self) -> None:
        self.away += 1


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def keeper(settings: Settings, database: Engine, queue: Broker, hands: Hands, stored: StoredRun) -> Maintenance:
    keys = [stored.run.model_key]
    return Maintenance(settings, database, queue, hands, worker="a", model_keys=keys, when_stalled=lambda: None)


def claim(database: Engine, stored: StoredRun, worker: str, *places: int) -> None:
    for at in places:
        claim_pair(database, (stored.run.uuid, stored.ids[at]), worker, lease_s=60, max_crashes=3)


def test_pairs_of_a_vanished_worker_go_back_once(
    keeper: Maintenance, database: Engine, queue: Broker, stored: StoredRun, settings: Settings
) -> None:
    claim(database, stored, "gone", 0, 1, 2)
    assert keeper.sweep() == 0
    expire(database)
    assert keeper.sweep() == 3
    assert waiting(queue, stored, settings) == 3
    assert keeper.sweep() == 0


def test_after_an_outage_holders_come_first(
    keeper: Maintenance, database: Engine, stored: StoredRun, hands: Hands
) -> None:
    claim(database, stored, "there", 0)
    expire(database)
    hands.takeover = False
    assert keeper.sweep() == 0
    hands.takeover = True
    assert keeper.sweep() == 1


def test_an_empty_queue_is_filled_with_what_nobody_has_begun(
    keeper: Maintenance, database: Engine, queue: Broker, stored: StoredRun, settings: Settings
) -> None:
    claim(database, stored, "there", 0)
    with database.begin() as connection:
        write_result(connection, stored.ids[1], described(), worker="b", attempts=1, seconds=1)
    assert [keeper.sweep() for _ in range(4)] == [0, 2, 0, 0]
    assert waiting(queue, stored, settings) == 2


def test_a_queue_that_holds_something_is_not_lost(keeper: Maintenance, queue: Broker, stored: StoredRun,
                                                  settings: Settings) -> None:  # fmt: skip
    Publisher(queue, stored.run, settings.queue_shards).publish([])
    queue.redis.lpush(KEY_PREFIX + all_queues(stored.run.model_key, settings.queue_shards)[3], "a message")
    assert [keeper.sweep() for _ in range(4)] == [0] * 4


def test_a_queue_that_is_still_being_filled_is_not_lost(keeper: Maintenance, queue: Broker, stored: StoredRun) -> None:
    queue.redis.set(producing_key(stored.run), 1)
    assert [keeper.sweep() for _ in range(3)] == [0] * 3
    queue.redis.delete(producing_key(stored.run))
    assert keeper.sweep() == 4


def test_runs_of_other_models_are_left_alone(
    keeper: Maintenance, database: Engine, queue: Broker, settings: Settings
) -> None:
    other = store_run(database, [pair(0)], "other", model="other/model")
    claim(database, other, "gone", 0)
    expire(database)
    taken = sum(keeper.sweep() for _ in range(3))
    assert taken == 4  # the fixture's own, that no message stands for
    assert waiting(queue, other, settings) == 0
    assert [key for key in queue.redis.keys("*") if other.run.uuid in str(key)] == []
