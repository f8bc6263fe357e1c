"""Claims: one holder at a time, freed when it vanishes, and blame only where it is due."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, select, update

from app.database.claim_rows import (
    Claim,
    ClaimStatus,
    begin_quarantined,
    claim_pair,
    record_crash,
    release_claims,
    renew_claims,
    take_orphans,
)
from app.database.connection import reading
from app.database.records import ACTIVE, PAUSED
from app.database.run_rows import find_run, set_state
from app.database.schema import claims, runs
from tests.support.runs import StoredRun, claimant, describe, pair, store_run


@pytest.fixture
def stored(database: Engine) -> StoredRun:
    return store_run(database, [pair(number) for number in range(4)])


def ask(
    database: Engine, stored: StoredRun, worker: str, at: int = 0, **options: Any
) -> tuple[ClaimStatus, Claim | None]:
    return claim_pair(database, (stored.run.uuid, stored.ids[at]), claimant(worker, **options))


def claimed(database: Engine, stored: StoredRun, worker: str, at: int = 0, **options: Any) -> Claim:
    standing, claim = ask(database, stored, worker, at, **options)
    assert standing is ClaimStatus.CLAIMED
    assert claim is not None
    return claim


def expire(database: Engine) -> None:
    """Let all leases have ended."""
    with database.begin() as connection:
        connection.execute(update(claims).values(lease_until=1.0))


def row(database: Engine, stored: StoredRun, at: int = 0) -> Any:
    with reading(database) as connection:
        return connection.execute(select(claims).where(claims.c.pair_id == stored.ids[at])).one()


def test_a_pair_has_one_holder(database: Engine, stored: StoredRun) -> None:
    claim = claimed(database, stored, "a")
    assert (claim.attempts, claim.quarantined, claim.run.uuid) == (1, False, stored.run.uuid)
    assert claim.pair.subject == "subject 0"
    assert ask(database, stored, "b") == (ClaimStatus.HELD, None)
    assert claimed(database, stored, "a").attempts == 2


def test_of_claimers_at_once_one_gets_the_pair(database: Engine, stored: StoredRun) -> None:
    with ThreadPoolExecutor(6) as threads:
        standings = [
            standing for standing, _ in threads.map(lambda at: ask(database, stored, f"worker {at}"), range(6))
        ]
    assert sorted(standing.name for standing in standings) == ["CLAIMED"] + ["HELD"] * 5


def test_messages_of_another_time_are_told_apart(database: Engine, stored: StoredRun) -> None:
    other = store_run(database, [pair(9)], "other")
    for message in [("gone", stored.ids[0]), (stored.run.uuid, 10**9), (other.run.uuid, stored.ids[0])]:
        assert claim_pair(database, message, claimant("a")) == (ClaimStatus.UNKNOWN, None)


def test_a_described_pair_is_settled(database: Engine, stored: StoredRun) -> None:
    with database.begin() as connection:
        describe(connection, stored.ids[0], worker="a")
    assert ask(database, stored, "b") == (ClaimStatus.SETTLED, None)


def test_a_lease_that_is_not_renewed_frees_the_pair(database: Engine, stored: StoredRun) -> None:
    claimed(database, stored, "a")
    expire(database)
    assert ask(database, stored, "b", takeover=False) == (ClaimStatus.HELD, None)
    assert renew_claims(database, "a", 60, stored.ids) == 1
    assert ask(database, stored, "b") == (ClaimStatus.HELD, None)
    expire(database)
    claimed(database, stored, "b")
    assert renew_claims(database, "a", 60, stored.ids) == 0


def test_released_pairs_are_free_and_nobody_is_to_blame(database: Engine, stored: StoredRun) -> None:
    for at in range(3):
        claimed(database, stored, "a", at)
    assert release_claims(database, "a", stored.ids[:1]) == 1
    assert ask(database, stored, "b", 1) == (ClaimStatus.HELD, None)
    assert release_claims(database, "a") == 2
    for _ in range(5):
        assert not claimed(database, stored, "b").quarantined
        release_claims(database, "b")
    assert (row(database, stored).crash_count, row(database, stored).lost) == (0, 0)


def test_after_a_crash_all_pairs_of_the_process_run_alone(database: Engine, stored: StoredRun) -> None:
    for at in range(3):
        claimed(database, stored, "a", at)
    assert record_crash(database, "a", "SIGSEGV") == 3
    assert all(claimed(database, stored, "b", at).quarantined for at in range(3))
    assert not claimed(database, stored, "b", 3).quarantined


def test_a_pair_that_kills_its_worker_fails_and_its_neighbours_are_cleared(database: Engine, stored: StoredRun) -> None:
    for at in range(3):
        claimed(database, stored, "first", at)
    record_crash(database, "first", "its worker was ended by SIGSEGV")
    for attempt in range(3):  # the neighbours wait for their turn alone whenever it dies
        for at in range(3):
            claimed(database, stored, f"worker {attempt}", at)
        begin_quarantined(database, f"worker {attempt}", stored.ids[0])
        record_crash(database, f"worker {attempt}", "its worker was ended by SIGSEGV")
    status, claim = ask(database, stored, "last")
    assert status is ClaimStatus.POISONOUS
    assert claim is not None
    assert (claim.attempts, "SIGSEGV" in claim.crash) == (5, True)
    assert claimed(database, stored, "last", 1).quarantined
    assert row(database, stored, 1).crash_count == 0


def test_vanishing_counts_only_against_the_pair_that_ran_alone(database: Engine, stored: StoredRun) -> None:
    for attempt in range(2):
        assert not claimed(database, stored, f"together {attempt}").quarantined
        expire(database)
    for attempt in range(3):
        assert claimed(database, stored, f"alone {attempt}").quarantined
        begin_quarantined(database, f"alone {attempt}", stored.ids[0])
        expire(database)
    assert ask(database, stored, "last")[0] is ClaimStatus.POISONOUS


def test_vanishing_while_it_waits_for_its_turn_never_fails_a_pair(database: Engine, stored: StoredRun) -> None:
    for attempt in range(8):
        claimed(database, stored, f"worker {attempt}")
        expire(database)
    assert claimed(database, stored, "last").quarantined
    assert row(database, stored).crash_count == 0


def test_lost_pairs_are_given_out_once(database: Engine, stored: StoredRun) -> None:
    for at in (2, 0, 1):
        claimed(database, stored, "a", at)
    assert take_orphans(database, [stored.run], again_after_s=30) == []
    expire(database)
    with ThreadPoolExecutor(4) as threads:
        taken = list(threads.map(lambda _: take_orphans(database, [stored.run], again_after_s=30), range(4)))
    ids = [found.id for part in taken for _, found in part]
    assert sorted(ids) == stored.ids[:3]
    assert take_orphans(database, [stored.run], again_after_s=30) == []
    assert row(database, stored).lost == 1


def test_lost_pairs_are_of_these_runs_and_at_most_so_many(database: Engine, stored: StoredRun) -> None:
    other = store_run(database, [pair(0)], "other")
    for at in range(4):
        claimed(database, stored, "a", at)
    claimed(database, other, "a")
    expire(database)
    assert take_orphans(database, [], again_after_s=30) == []
    assert [found.id for _, found in take_orphans(database, [other.run], again_after_s=30)] == other.ids
    assert len(take_orphans(database, [stored.run], again_after_s=30, limit=3)) == 3


def test_a_message_of_a_paused_run_is_given_out_again_once_it_is_resumed(database: Engine) -> None:
    stored = store_run(database, [pair(0), pair(1)])
    with database.begin() as connection:
        connection.execute(runs.update().values(published_upto=max(stored.ids)))
        run = find_run(connection, None)
        set_state(connection, run, PAUSED)
    assert ask(database, stored, "a")[0] is ClaimStatus.INACTIVE
    with database.begin() as connection:
        set_state(connection, find_run(connection, None), ACTIVE)
    assert [each.id for _, each in take_orphans(database, [run], again_after_s=30)] == [stored.ids[0]]
    assert claimed(database, stored, "b").pair_id == stored.ids[0]
