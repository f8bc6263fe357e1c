"""Workers killed, stopped and crashed with pairs in flight: every pair ends once, and nobody has to help."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from sqlalchemy import select

from app.database.connection import reading
from app.database.schema import claims, results
from app.queue.keys import PREFIX
from tests.support.farm import Farm, ready
from tests.support.runs import write_inputs
from tests.support.waits import wait_for

OVER = "grace period over"
LONG: dict[str, Any] = {"max_new_tokens": 60, "temperature": 2.0}  # long enough to be caught at it


def attempts(farm: Farm) -> list[int]:
    with reading(farm.database) as connection:
        return list(connection.execute(select(results.c.attempts)).scalars())


def held(farm: Farm) -> int:
    with reading(farm.database) as connection:
        return len(connection.execute(select(claims).where(claims.c.worker != "")).all())


def test_a_killed_workers_pairs_are_done_by_another(farm: Farm, tmp_path: Path) -> None:
    first, second = farm.spawn_worker(), farm.spawn_worker()
    for worker in (first, second):
        ready(worker)
    farm.enqueue(write_inputs(tmp_path / "in", images=5, pairs=4), **LONG)
    farm.wait_begun("default")
    first.kill()
    assert farm.wait_done() == (20, 20, 0, 0)
    assert max(attempts(farm)) <= 2
    assert attempts(farm).count(2) <= 4  # what was in its hands
    assert farm.export().pending == 0


def test_sigterm_hands_back_what_is_not_done_and_exits_with_0(farm: Farm, tmp_path: Path) -> None:
    worker = farm.start_worker(shutdown_grace_s=0)
    farm.enqueue(write_inputs(tmp_path / "in", images=6, pairs=10), **LONG)
    farm.wait_begun("default")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0, worker.said
    assert OVER in worker.said
    assert held(farm) == 0
    assert farm.redis.hlen(PREFIX + "unacked") == 0
    left = farm.counts()
    assert left.failed == 0
    assert left.done < left.expected
    assert farm.waiting() >= left.expected - left.done


def test_sigterm_lets_what_is_nearly_done_finish(farm: Farm, tmp_path: Path) -> None:
    worker = farm.start_worker(shutdown_grace_s=60)
    farm.enqueue(write_inputs(tmp_path / "in", images=3, pairs=4), **LONG)
    farm.wait_begun("default")
    wait_for(lambda: held(farm), "pairs in flight")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0, worker.said
    assert OVER not in worker.said
    assert held(farm) == 0
