"""Outcomes: the first result stays, a failure never stands alongside it, counts add up."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Engine, select

from app.database.claim_rows import claim_pair
from app.database.connection import reading
from app.database.result_rows import (
    count_images,
    described_pairs,
    failed_pairs,
    failure_counts,
    finished_since,
    forget_failures,
)
from app.database.schema import claims, results
from tests.support import runs
from tests.support.runs import claimant, describe, pair, source_of, standing, store_run


def write(database: Engine, pair_id: int, text: str = "a text", worker: str = "w") -> bool:
    with database.begin() as connection:
        return describe(connection, pair_id, [text, "b"], worker, seconds=2.0)


def fail(database: Engine, pair_id: int, reason: str = "image missing") -> None:
    with database.begin() as connection:
        runs.fail(connection, pair_id, reason)


def test_the_first_of_two_results_stays(database: Engine) -> None:
    stored = store_run(database, [pair(0)])
    assert write(database, stored.ids[0], "first")
    assert not write(database, stored.ids[0], "second")
    with database.begin() as connection:
        (descriptions,) = connection.execute(select(results.c.descriptions)).scalars()
    assert descriptions[0]["text"] == "first"


def test_of_results_written_at_once_one_is_the_first(database: Engine) -> None:
    stored = store_run(database, [pair(0)])
    with ThreadPoolExecutor(5) as threads:
        won = list(threads.map(lambda number: write(database, stored.ids[0], f"text {number}"), range(5)))
    assert won.count(True) == 1


def test_a_result_ends_the_claim_and_the_failure(database: Engine) -> None:
    stored = store_run(database, [pair(0)])
    claim_pair(database, (stored.run.uuid, stored.ids[0]), claimant("w"))
    fail(database, stored.ids[0])
    write(database, stored.ids[0])
    with reading(database) as connection:
        assert connection.execute(select(claims)).all() == []
        assert standing(connection, stored.run) == (1, 1, 0, 0)


def test_a_failure_never_stands_beside_a_result(database: Engine) -> None:
    stored = store_run(database, [pair(0)])
    write(database, stored.ids[0])
    fail(database, stored.ids[0])
    with reading(database) as connection:
        assert standing(connection, stored.run) == (1, 1, 0, 0)


def test_a_second_failure_changes_nothing(database: Engine) -> None:
    stored = store_run(database, [pair(0)])
    fail(database, stored.ids[0], "first")
    fail(database, stored.ids[0], "second")
    with reading(database) as connection:
        assert failure_counts(connection, stored.run) == {"first": 1}


def test_failures_are_counted_listed_and_forgotten_by_reason(database: Engine) -> None:
    stored = store_run(database, [pair(number) for number in range(4)])
    for pair_id in stored.ids[:2]:
        fail(database, pair_id, "image missing")
    fail(database, stored.ids[2], "model error")
    with database.begin() as connection:
        assert list(failure_counts(connection, stored.run).items()) == [("image missing", 2), ("model error", 1)]
        assert len(failed_pairs(connection, stored.run, limit=2)) == 2
        assert sorted(forget_failures(connection, stored.run, ["image missing"])) == stored.ids[:2]
        assert forget_failures(connection, stored.run) == [stored.ids[2]]
        assert failure_counts(connection, stored.run) == {}


def test_counts_are_of_the_run_whatever_its_sources(database: Engine) -> None:
    store_run(database, [pair(0)], "other")
    store_run(database, [pair(number) for number in range(5)])
    last = store_run(database, [pair(number) for number in range(2, 6)], source=source_of("another"))
    write(database, last.ids[0])
    write(database, last.ids[2])
    claim_pair(database, (last.run.uuid, last.ids[1]), claimant("w"))
    with reading(database) as connection:
        assert standing(connection, last.run) == (6, 2, 0, 1)
        assert count_images(connection, last.run) == 2
        number, span = finished_since(connection, last.run, 300)
    assert number == 2
    assert 2 <= span < 300


def test_described_pairs_come_in_the_order_of_the_inputs(database: Engine) -> None:
    stored = store_run(database, [pair(number) for number in (3, 1, 0, 2)])
    for pair_id in reversed(stored.ids):
        write(database, pair_id)
    with reading(database) as connection:
        subjects = [row.payload["subject"] for row in described_pairs(connection, stored.run)]
    assert subjects == ["subject 0", "subject 1", "subject 2", "subject 3"]
