"""The faults: each a function that breaks something in a farm, and says what it did and what was in flight."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from app.queue.keys import PREFIX, TASK, shard_lists
from app.queue.publisher import Broker, Publisher
from tests.support.drawn_inputs import DrawnInputs
from tests.support.farm import Farm, held_still, kill_worker
from tests.support.odd_messages import odd_messages

_GARBAGE = (
    b"garbage", b"\xff\xfe\x00", b"[1, 2", b"{}", b"[]", b"null", b"0", b'{"body": "x"}', b"[" * 100_000,
    b'{"body": "!", "properties": {}, "headers": {}, "content-type": "application/json", "content-encoding": "utf-8"}',
)  # fmt: skip
_ODD_ARGUMENTS: tuple[list[object], ...] = (
    [], ["x", 1], ["00000000-0000-0000-0000-000000000000", 1], [None, None], ["a\x00", 2**80],
    ["00000000-0000-0000-0000-000000000000", 2**70], ["00000000-0000-0000-0000-000000000000", "1"], [{}, []],
)  # fmt: skip


class Fault(NamedTuple):
    """What was done, and how many pairs were in hands that it touched."""

    what: str
    in_flight: int


class Scene(NamedTuple):
    """What a fault may touch."""

    farm: Farm
    inputs: DrawnInputs
    options: tuple[str, ...]
    numbers: random.Random


def kill_a_worker(scene: Scene, number: int = signal.SIGKILL) -> Fault:
    """kill -9; the launcher starts another."""
    pids = list(scene.farm.pids())
    if not pids:
        return Fault("no worker was alive to kill", 0)
    pid = scene.numbers.choice(pids)
    in_flight = kill_worker(scene.farm, pid, number)
    return Fault(f"worker {pid}: {signal.Signals(number).name} with {in_flight} pairs in flight", in_flight)


def terminate_a_worker(scene: Scene) -> Fault:
    """What a scheduler does before it kills."""
    return kill_a_worker(scene, signal.SIGTERM)


def kill_the_launcher(scene: Scene) -> Fault:
    """kill -9 of the launcher, which takes its workers along; then another is started."""
    farm = scene.farm
    assert farm.launcher is not None
    workers = len(farm.pids())
    with held_still(farm):
        in_flight = farm.in_flight()
        farm.launcher.signal(signal.SIGKILL)
        farm.launcher.wait()
    farm.start_launcher(workers)
    return Fault(f"launcher {farm.launcher.pid}: SIGKILL, with its workers {in_flight} pairs in flight", in_flight)


def kill_the_producer(scene: Scene) -> Fault:
    """kill -9 of the producer at any point of its work, then the same command again."""
    running = [process for process in scene.farm.producers if process.alive]
    producer = running[0] if running else scene.farm.produce(scene.inputs, *scene.options)
    time.sleep(scene.numbers.uniform(0.0, 4.0))
    producer.kill()
    scene.farm.produce(scene.inputs, *scene.options)
    return Fault(f"producer {producer.pid}: SIGKILL, started again", 0)


def add_a_producer(scene: Scene) -> Fault:
    """A second producer of the same run alongside the first."""
    producer = scene.farm.produce(scene.inputs, *scene.options)
    return Fault(f"producer {producer.pid}: one more for the same run", 0)


def restart_redis(scene: Scene, number: int = signal.SIGTERM, *, forget: bool = False) -> Fault:
    """Redis away for a moment, back with its data or (``forget``) without."""
    farm, away = scene.farm, scene.numbers.uniform(0.0, 4.0)
    in_flight = farm.in_flight()
    farm.broker.stop(number)
    if forget:
        farm.broker.forget()
    time.sleep(away)
    farm.broker.start()
    how = "without its data" if forget else "with its data"
    return Fault(f"Redis: {signal.Signals(number).name}, away {away:.1f} s, back {how}", in_flight)


def crash_redis(scene: Scene) -> Fault:
    """kill -9 of Redis."""
    return restart_redis(scene, signal.SIGKILL)


def lose_redis(scene: Scene) -> Fault:
    """Redis comes back empty."""
    return restart_redis(scene, signal.SIGKILL, forget=True)


def restart_database(scene: Scene) -> Fault:
    """The database is away for some seconds."""
    away = scene.numbers.uniform(0.5, 6.0)
    scene.farm.database_server.away(away)
    return Fault(f"database: away {away:.1f} s", 0)


def crash_database(scene: Scene) -> Fault:
    """PostgreSQL ends as in a crash and recovers (SQLite: locked)."""
    scene.farm.database_server.away(0.5, signal.SIGQUIT)
    return Fault("database: crashed and recovered", 0)


def fill_redis(scene: Scene) -> Fault:
    """Redis has no room for some seconds: what needs none goes on."""
    return _refuse(scene, "full", ("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"))


def make_redis_read_only(scene: Scene) -> Fault:
    """Redis is a replica of nobody for some seconds, as in a failover."""
    return _refuse(scene, "read-only", ("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"))


def _refuse(scene: Scene, how: str, begin: tuple[str, ...], end: tuple[str, ...]) -> Fault:
    client: Any = scene.farm.redis
    seconds, in_flight = scene.numbers.uniform(1.0, 8.0), scene.farm.in_flight()
    client.execute_command(*begin)
    time.sleep(seconds)
    client.execute_command(*end)
    return Fault(f"Redis: {how} for {seconds:.1f} s", in_flight)


def duplicate_messages(scene: Scene) -> Fault:
    """Copies of what waits are put behind it."""
    client, copied = scene.farm.redis, 0
    for queue in scene.farm.filled_queues():
        messages = client.lrange(queue, 0, 49)
        if messages:
            client.lpush(queue, *messages)
            copied += len(messages)
    return Fault(f"queue: {copied} messages duplicated", 0)


def push_garbage(scene: Scene) -> Fault:
    """Bytes that are no message, and messages whose arguments make no sense."""
    client, queue = scene.farm.redis, a_queue(scene.farm)
    [(name,)] = scene.farm.rows("SELECT name FROM runs ORDER BY id DESC LIMIT 1")
    publisher = Publisher(Broker(scene.farm.app), scene.farm.run(name), scene.farm.settings.queue_shards)
    garbage = [*_GARBAGE, *odd_messages(json.loads(publisher.message(10**9, queue.removeprefix(PREFIX))))]
    client.lpush(queue, *garbage)
    client.set(f"{queue.removesuffix('/0')}/1", "no list", nx=True)
    send_arguments(scene.farm, queue, *_ODD_ARGUMENTS)
    return Fault(f"queue: {len(garbage) + len(_ODD_ARGUMENTS) + 1} chunks of garbage in {queue}", 0)


def a_queue(farm: Farm) -> str:
    """The key of one of the newest run's lists, whether it holds something or not."""
    [(model_key, uuid)] = farm.rows("SELECT model_key, uuid FROM runs ORDER BY id DESC LIMIT 1")
    return PREFIX + shard_lists(model_key, uuid, 1)[0]


def send_arguments(farm: Farm, queue: str, *arguments: list[object]) -> None:
    """Task messages as Celery itself makes them, with these arguments."""
    for some in arguments:
        farm.app.send_task(TASK, args=some, queue=queue.removeprefix(PREFIX))
    farm.app.send_task("other.task", queue=queue.removeprefix(PREFIX))


KINDS: tuple[Callable[[Scene], Fault], ...] = (
    kill_a_worker, lose_redis, kill_the_producer, restart_database, duplicate_messages, crash_redis,
    push_garbage, fill_redis, make_redis_read_only, terminate_a_worker, restart_redis, add_a_producer, crash_database,
    kill_the_launcher,
)  # fmt: skip
