"""Which queue a worker drains next: alone with real Redis leases, and several workers against each other."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from app.queue.embedded import EmbeddedBroker
from app.queue.shards import RedisLeases, ShardCycle

SHARDS = [f"shard {number}" for number in range(8)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[redis.Redis]:
    broker = EmbeddedBroker(tmp_path / "b")
    broker.ensure()
    with redis.Redis(unix_socket_path=str(broker.socket)) as client:
        yield client
    broker.stop()


@pytest.fixture
def worker(server: redis.Redis) -> Callable[..., ShardCycle]:
    def make(low: bool = True) -> ShardCycle:
        @contextmanager
        def client() -> Iterator[redis.Redis]:
            yield server

        return ShardCycle(RedisLeases(client, "farm:", uuid.uuid4().hex, lease_s=45), lambda: low, SHARDS)

    return make


def look_again(cycle: ShardCycle) -> list[str]:
    """The order with a fresh view of the leases."""
    cycle._looked = float("-inf")
    return cycle.consume()


def later(cycle: ShardCycle) -> None:
    """Let two seconds pass for a worker."""
    cycle._taken = {shard: (holder, since - 2) for shard, (holder, since) in cycle._taken.items()}
    cycle._ours = {shard: last - 2 for shard, last in cycle._ours.items()}


def test_a_worker_stays_on_its_shard(worker: Callable[..., ShardCycle]) -> None:
    cycle = worker()
    cycle.rotate("shard 5")
    assert cycle.consume()[0] == "shard 5"
    assert sorted(cycle.consume()) == SHARDS


def test_a_worker_passes_by_what_another_drains(worker: Callable[..., ShardCycle]) -> None:
    first, second = worker(), worker()
    first.rotate("shard 3")
    assert "shard 3" not in look_again(second), "just started: most often drained before help comes"
    later(second)
    assert look_again(second)[-1] == "shard 3"
    later(first)
    first.rotate("shard 4")
    assert "shard 4" not in look_again(second)
    third = worker()
    third.rotate("shard 3")
    assert "shard 3" not in look_again(second), "another has started it again"


def test_a_busy_worker_does_not_help(worker: Callable[..., ShardCycle]) -> None:
    first, second = worker(), worker(low=False)
    first.rotate("shard 3")
    assert "shard 3" not in look_again(second)


def test_a_shard_is_left_when_its_worker_goes_on(worker: Callable[..., ShardCycle]) -> None:
    first, second = worker(), worker(low=False)
    first.rotate("shard 3")
    first.rotate("shard 4")
    assert first.consume()[:2] == ["shard 4", "shard 3"]
    assert "shard 3" not in look_again(second), "the rest of its image may be on its way"
    later(first)
    first.rotate("shard 3")
    first.rotate("shard 6")
    assert first.consume()[:2] == ["shard 6", "shard 3"]
    assert "shard 4" in look_again(second)
    later(first)
    first.rotate("shard 4")
    order = look_again(second)
    assert "shard 3" in order
    assert "shard 4" not in order


def test_two_that_take_one_shard_at_once_do_not_go_on_sharing_it(worker: Callable[..., ShardCycle]) -> None:
    first, second = worker(), worker(low=False)
    look_again(second)
    first.rotate("shard 3")
    second.rotate("shard 3")  # its view was from before
    assert "shard 3" not in second.consume()


def test_who_helps_stays_as_long_as_there_is_work(worker: Callable[..., ShardCycle]) -> None:
    first, second = worker(), worker()
    first.rotate("shard 3")
    look_again(second)
    later(second)
    second.rotate("shard 3")
    assert second.consume()[0] == "shard 3"
    second.rotate("shard 1")
    assert "shard 3" not in look_again(first)[1:]
    assert look_again(first)[0] == "shard 3", "the helper did not take the lease away"


def test_a_lease_runs_out_with_its_worker(worker: Callable[..., ShardCycle], server: redis.Redis) -> None:
    cycle, lease = worker(), "farm:draining:shard 3"
    cycle.rotate("shard 3")
    assert 0 < server.ttl(lease) <= 45
    server.expire(lease, 5)
    cycle.renew()
    assert server.ttl(lease) > 40
    server.set(lease, "another's by now")
    cycle.renew()
    assert server.ttl(lease) == -1


def test_after_a_reconnection_the_leases_are_still_the_workers(server: redis.Redis) -> None:
    @contextmanager
    def client() -> Iterator[redis.Redis]:
        yield server

    before, after = (RedisLeases(client, "farm:", "one worker", lease_s=45) for _ in range(2))
    assert before.take("shard 1")
    assert after.take("shard 1")
    assert not RedisLeases(client, "farm:", "another", lease_s=45).take("shard 1")


def test_workers_do_not_all_begin_at_one_shard(worker: Callable[..., ShardCycle]) -> None:
    assert len({worker().consume()[0] for _ in range(60)}) > 2
