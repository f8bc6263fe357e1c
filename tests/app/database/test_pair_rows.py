"""A run's pairs: stored once under both forms of identity, grown but not changed, read back in order."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.exc import IntegrityError

from app.database.claim_rows import claim_pair
from app.database.pair_rows import open_pairs
from app.database.result_rows import fail_pair, write_result
from app.database.schema import pairs
from app.errors import RunError
from app.pair import Candidate
from tests.support.runs import described, pair, store_run


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
        write_result(connection, first.ids[1], described(), worker="w", attempts=1, seconds=1)
    again = store_run(database, [pair(number) for number in range(3)])
    assert again.stored.already_done == 1
    assert again.ids == [first.ids[0], first.ids[2]]


def test_a_described_pair_may_not_change(database: Engine) -> None:
    first = store_run(database, [pair(0), pair(1)])
    with database.begin() as connection:
        write_result(connection, first.ids[0], described(), worker="w", attempts=1, seconds=1)
    changed = pair(0, candidates=(Candidate("below", 0.25),))
    with pytest.raises(RunError, match=r"candidates.*on.*then.*below.*now"):
        store_run(database, [changed, pair(1)])


def test_a_pair_without_a_result_may_change(database: Engine) -> None:
    store_run(database, [pair(0)])
    store_run(database, [pair(0, candidates=(Candidate("below", 0.25),))])
    with database.begin() as connection:
        (payload,) = connection.execute(select(pairs.c.payload)).scalars()
    assert payload["candidates"] == [["below", 0.25]]


def test_names_and_ids_identify_different_pairs(database: Engine) -> None:
    two_men = [pair(0, by_id=True, subject="man", object="man"), pair(1, by_id=True, subject="man", object="man")]
    by_name = [pair(2, subject="man", object="man", position=2)]
    assert len(store_run(database, two_men + by_name).ids) == 3


@pytest.mark.parametrize("by_id", [False, True])
def test_no_row_stands_twice_under_one_identity(database: Engine, by_id: bool) -> None:
    stored = store_run(database, [pair(0, by_id=by_id), pair(0, by_id=by_id)])
    assert stored.stored.pairs == 1
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


def test_open_pairs_come_in_the_order_of_the_inputs_page_by_page(database: Engine) -> None:
    shuffled = [pair(number) for number in (6, 2, 0, 5, 1, 4, 3)]
    stored = store_run(database, shuffled)
    pages = list(open_pairs(database, stored.run, page=3))
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [row.id for page in pages for row in page] == stored.ids
    with database.begin() as connection:
        positions = dict(connection.execute(select(pairs.c.id, pairs.c.position)).all())
    assert [positions[pair_id] for pair_id in stored.ids] == list(range(7))


def test_open_pairs_are_those_without_an_outcome(database: Engine) -> None:
    stored = store_run(database, [pair(number) for number in range(4)])
    with database.begin() as connection:
        write_result(connection, stored.ids[0], described(), worker="w", attempts=1, seconds=1)
        fail_pair(connection, stored.ids[1], "image missing", "a.jpg", attempts=1, worker="w")
    claim_pair(database, (stored.run.uuid, stored.ids[2]), "w", lease_s=30, max_crashes=3)
    (page,) = open_pairs(database, stored.run)
    assert [row.id for row in page] == stored.ids[2:]
    (unbegun,) = open_pairs(database, stored.run, unclaimed=True)
    assert [row.id for row in unbegun] == stored.ids[3:]
    assert list(open_pairs(database, stored.run, enqueue_id=stored.stored.enqueue_id + 1)) == []


def test_pairs_that_end_between_two_pages_are_left_out(database: Engine) -> None:
    stored = store_run(database, [pair(number) for number in range(4)])
    pages = open_pairs(database, stored.run, page=2)
    assert [row.id for row in next(pages)] == stored.ids[:2]
    with database.begin() as connection:
        write_result(connection, stored.ids[2], described(), worker="w", attempts=1, seconds=1)
    assert [row.id for row in next(pages)] == stored.ids[3:]
