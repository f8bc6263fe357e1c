"""A run's pairs: stored once under both forms of identity, grown but not changed, read back in order."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.exc import IntegrityError

from app.database import publish_rows
from app.database.claim_rows import claim_pair, take_orphans
from app.database.connection import reading
from app.database.pair_rows import pending_after
from app.database.schema import pairs
from app.errors import RunError
from app.pair import Candidate
from tests.support.runs import StoredRun, claimant, describe, fail, pair, standing, store_run


def unbegun(database: Engine, stored: StoredRun, after: int = 0, limit: int = 100) -> list[int]:
    """The ids that would be published next."""
    with reading(database) as connection:
        return [each.id for each in pending_after(connection, stored.run, after, limit)]


def test_inputs_may_grow(database: Engine) -> None:
    first = store_run(database, [pair(number) for number in range(3)])
    grown = store_run(database, [pair(number) for number in range(5)])
    assert (first.stored.pairs, grown.stored.pairs) == (3, 5)
    assert grown.ids[:3] == first.ids
    with database.begin() as connection:
        assert connection.execute(select(pairs.c.id)).scalars().all() == grown.ids


def test_the_account_tells_what_is_done(database: Engine) -> None:
    first = store_run(database, [pair(number) for number in range(3)])
    with database.begin() as connection:
        describe(connection, first.ids[1])
    again = store_run(database, [pair(number) for number in range(3)])
    assert (again.stored.unchanged, again.stored.new, again.stored.changed) == (3, 0, 0)
    assert again.ids == [first.ids[0], first.ids[2]]
    with reading(database) as connection:
        assert standing(connection, first.run).done == 1


def test_a_pair_may_not_change_unless_that_is_wanted(database: Engine) -> None:
    first = store_run(database, [pair(0), pair(1)])
    with database.begin() as connection:
        describe(connection, first.ids[0])
        before = connection.execute(select(pairs)).all()
    changed = pair(0, candidates=(Candidate("below", 0.25),))
    with pytest.raises(RunError, match=r"image 1, .*predicates: on, above then, below now"):
        store_run(database, [changed, pair(1)])
    with database.begin() as connection:
        assert connection.execute(select(pairs)).all() == before


def test_a_pair_that_changes_is_pending_again(database: Engine) -> None:
    first = store_run(database, [pair(0)])
    with database.begin() as connection:
        describe(connection, first.ids[0])
    changed = store_run(database, [pair(0, candidates=(Candidate("below", 0.25),))], update=True)
    assert (changed.stored.changed, changed.ids) == (1, first.ids)
    with database.begin() as connection:
        (payload,) = connection.execute(select(pairs.c.payload)).scalars()
        assert standing(connection, first.run) == (1, 0, 0, 0)
    assert payload["candidates"] == [["below", 0.25]]


def test_what_becomes_pending_is_given_out_again_and_what_waits_already_is_not(database: Engine) -> None:
    stored = store_run(database, [pair(0), pair(1)])
    publish_rows.begin_publishing(database, stored.run, "epoch", "a", 60)
    assert publish_rows.advance(database, stored.run, "a", stored.ids[-1], 60)
    with database.begin() as connection:
        describe(connection, stored.ids[0])
    below = (Candidate("below", 0.9),)
    store_run(database, [pair(0, candidates=below), pair(1, candidates=below)], update=True)
    orphans = take_orphans(database, [stored.run], again_after_s=30)
    assert [found.id for _, found in orphans] == stored.ids[:1], "the other one's message is in the queue"


def test_names_and_ids_identify_different_pairs(database: Engine) -> None:
    two_men = [pair(0, by_id=True, subject="man", object="man"), pair(1, by_id=True, subject="man", object="man")]
    by_name = [pair(2, subject="man", object="man", position=2)]
    assert len(store_run(database, two_men + by_name).ids) == 3


@pytest.mark.parametrize("by_id", [False, True])
def test_no_row_stands_twice_under_one_identity(database: Engine, by_id: bool) -> None:
    for _ in range(2):
        stored = store_run(database, [pair(0, by_id=by_id)])
    assert (stored.stored.pairs, stored.stored.new) == (1, 0)
    with database.begin() as connection:
        (row,) = connection.execute(select(pairs)).mappings()
        copy = {name: value for name, value in row.items() if name != "id"}
        with pytest.raises(IntegrityError), connection.begin_nested():
            connection.execute(pairs.insert().values(copy))


def test_two_runs_may_hold_the_same_pair(database: Engine) -> None:
    assert store_run(database, [pair(0)], "one").ids != store_run(database, [pair(0)], "two").ids


def test_any_text_survives(database: Engine) -> None:
    strange = 'a "quoted"\n<|im_end|> \U0001f600 \x00 \ud800 ' + "long" * 2_500
    store_run(database, [pair(0, subject=strange)])
    with database.begin() as connection:
        row = connection.execute(select(pairs)).one()
    assert row.payload["subject"] == strange
    assert row.subject.startswith('a "quoted"\n<|im_end|> \U0001f600 \ufffd ')


def test_pending_pairs_come_in_the_order_of_their_ids_page_by_page(database: Engine) -> None:
    stored = store_run(database, [pair(number) for number in (6, 2, 0, 5, 1, 4, 3)])
    found: list[int] = []
    for size in (3, 3, 1, 0):
        page = unbegun(database, stored, found[-1] if found else 0, 3)
        assert len(page) == size
        found += page
    assert found == sorted(stored.ids)
    with database.begin() as connection:
        positions = dict(connection.execute(select(pairs.c.id, pairs.c.position)).all())
    assert [positions[pair_id] for pair_id in stored.ids] == list(range(7)), "the order of the inputs is kept beside"


def test_what_is_published_next_has_no_outcome_and_is_in_nobodys_hands(database: Engine) -> None:
    stored = store_run(database, [pair(number) for number in range(4)])
    with database.begin() as connection:
        describe(connection, stored.ids[0])
        fail(connection, stored.ids[1])
    claim_pair(database, (stored.run.uuid, stored.ids[2]), claimant("w"))
    assert unbegun(database, stored) == stored.ids[3:]
    with database.begin() as connection:
        describe(connection, stored.ids[3])
    assert unbegun(database, stored) == []


def test_pairs_that_end_between_two_pages_are_left_out(database: Engine) -> None:
    stored = store_run(database, [pair(number) for number in range(4)])
    assert unbegun(database, stored, limit=2) == stored.ids[:2]
    with database.begin() as connection:
        describe(connection, stored.ids[2])
    assert unbegun(database, stored, stored.ids[1], 2) == stored.ids[3:]


def test_one_process_publishes_a_run_at_a_time_and_goes_on_where_the_last_one_was(database: Engine) -> None:
    stored = store_run(database, [pair(number) for number in range(4)])
    assert publish_rows.begin_publishing(database, stored.run, "epoch", "one", 60.0) == 0
    assert publish_rows.begin_publishing(database, stored.run, "epoch", "two", 60.0) is None
    assert publish_rows.advance(database, stored.run, "one", stored.ids[1], 60.0)
    assert not publish_rows.advance(database, stored.run, "two", stored.ids[3], 60.0)
    publish_rows.end_publishing(database, stored.run, "one")
    assert publish_rows.begin_publishing(database, stored.run, "epoch", "two", 60.0) == stored.ids[1]


def test_a_broker_that_lost_its_queue_is_published_from_the_start(database: Engine) -> None:
    stored = store_run(database, [pair(number) for number in range(4)])
    publish_rows.begin_publishing(database, stored.run, "epoch", "one", 60.0)
    publish_rows.advance(database, stored.run, "one", stored.ids[3], 60.0)
    assert publish_rows.begin_publishing(database, stored.run, "epoch", "one", 60.0) == stored.ids[3]
    assert publish_rows.begin_publishing(database, stored.run, "another epoch", "one", 60.0) == 0
