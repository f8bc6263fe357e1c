"""A Redis that answers and refuses: workers keep their model and wait, and a full one is drained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis

from app.queue.keys import PREFIX
from tests.support.farm import QUICK, Farm
from tests.support.runs import write_inputs
from tests.support.servers import SqliteFile
from tests.support.waits import wait_for

Client = redis.Redis


class No(NamedTuple):
    """A way to refuse, its end, and what the worker says of it."""

    begin: Callable[[Client], object]
    end: Callable[[Client], object]
    said: str


def acl(client: Any, *rules: str) -> None:
    """Change what everybody may do."""
    client.execute_command("ACL", "SETUSER", "default", *rules)


WAYS = {
    "a read-only replica": No(
        lambda client: client.replicaof("127.0.0.1", 1),
        lambda client: client.replicaof("NO", "ONE"),
        "read-only replica",
    ),
    "too few replicas": No(
        lambda client: client.config_set("min-replicas-to-write", 1),
        lambda client: client.config_set("min-replicas-to-write", 0),
        "NOREPLICAS",
    ),
    "an ACL without BRPOP": No(
        lambda client: acl(client, "-brpop"),
        lambda client: acl(client, "+brpop"),
        "brpop",
    ),
    "an ACL without the farm's keys": No(
        lambda client: acl(client, "resetkeys", "~other:*"),
        lambda client: acl(client, "allkeys"),
        "No permissions",
    ),
}


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Farm]:
    """One worker, started once and never again."""
    folder = tmp_path_factory.mktemp("no")
    with Farm(folder, SqliteFile(folder / "farm.sqlite"), model=tiny_model, **QUICK) as farm:
        farm.start_worker()
        yield farm


def assert_the_same_worker(farm: Farm) -> None:
    (worker,) = farm.workers
    assert worker.alive, worker.said[-3000:]
    assert worker.said.count("ready, up to") == 1


@pytest.mark.parametrize(
    "way", [way if way == "a read-only replica" else pytest.param(way, marks=pytest.mark.slow) for way in WAYS]
)
def test_a_worker_keeps_its_model_until_redis_takes_its_commands_again(farm: Farm, tmp_path: Path, way: str) -> None:
    no, name, (worker,) = WAYS[way], way.replace(" ", "-"), farm.workers
    said = len(worker.said)
    farm.enqueue(write_inputs(tmp_path, images=4, pairs=10), name, max_new_tokens=40)
    farm.wait_begun(name)
    no.begin(farm.redis)
    try:
        wait_for(lambda: no.said in worker.said[said:] and "Trying again in" in worker.said[said:], "it says why")
    finally:
        no.end(farm.redis)
    assert farm.wait_done(name).done == 40
    assert_the_same_worker(farm)


def test_a_full_redis_is_drained(farm: Farm, tmp_path: Path) -> None:
    farm.enqueue(write_inputs(tmp_path, images=4, pairs=10), "full", max_new_tokens=40)
    farm.wait_begun("full")
    farm.redis.config_set("maxmemory", 1)
    try:
        assert farm.wait_done("full").done == 40
        wait_for(lambda: not farm.redis.exists(f"{PREFIX}unacked"), "what was noted before is acknowledged")
        assert "without" in farm.workers[0].said, "it never was full"
    finally:
        farm.redis.config_set("maxmemory", 0)
    assert_the_same_worker(farm)


@pytest.mark.slow
def test_a_worker_that_starts_with_a_full_redis_drains_it(farm: Farm, tmp_path: Path) -> None:
    with Farm(tmp_path / "other", SqliteFile(tmp_path / "farm.sqlite"), model=farm.settings.model, **QUICK) as other:
        other.enqueue(write_inputs(tmp_path, images=2, pairs=4))
        other.redis.config_set("maxmemory", 1)
        other.start_worker()
        assert other.wait_done().done == 8
