"""Pairs of a run read back: what is pending, what is done and asked for once more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, exists, select, update

from app.database import tally_rows
from app.database.dialect import insert
from app.database.records import QueuedPair, Run
from app.database.schema import answers, claims, failures, is_live, is_pending, pairs, results
from app.pair import Pair, verifications

_ROWS_A_STATEMENT = 2_000


def redo(
    connection: Connection,
    run: Run,
    chosen: Iterable[Any],
    predicates_of: Callable[[Pair, list[dict[str, Any]]], Iterable[str]],
    max_new_tokens: int | None,
) -> tuple[int, int]:
    """Ask once more for descriptions of done pairs, each by another draw; gives how many (pairs, descriptions).

    ``chosen`` are rows of ``done_pairs``; ``predicates_of`` says which of a pair's predicates are meant ("" where
    one description stands for the pair). ``max_new_tokens`` is another limit for these.
    """
    changed: list[tuple[Any, Pair]] = []
    count = 0
    for row in chosen:
        pair = Pair.from_json(row.payload)
        again = list(dict.fromkeys(predicates_of(pair, row.descriptions)))
        if not again:
            continue
        draws = {name: (number, most) for name, number, most in pair.draws}
        for name in again:
            number, most = draws.get(name, (0, 0))
            draws[name] = number + 1, max_new_tokens or most
        redone = replace(pair, draws=tuple((name, number, most) for name, (number, most) in sorted(draws.items())))
        changed.append((row, redone))
        count += len(again)
    _ask_again(connection, run, changed)
    return len(changed), count


def verify(connection: Connection, run: Run, rows: Iterable[Any], language: str) -> int:
    """Have it asked of done pairs, rows of ``done_pairs``, whether their relations hold; gives how many are asked.

    Those that have all their answers in this language are left out, and descriptions stay as they are.
    """
    changed: list[tuple[Any, Pair]] = []
    for row in rows:
        pair = Pair.from_json(row.payload)
        before, times = pair.verify or ("", 0)
        if before == language and None not in verifications(pair, row.descriptions):
            continue
        changed.append((row, replace(pair, verify=(language, times + 1))))
    _ask_again(connection, run, changed)
    return len(changed)


def _ask_again(connection: Connection, run: Run, changed: Sequence[tuple[Any, Pair]]) -> None:
    """Put pairs in the place of what rows (id, request) hold."""
    if not changed:
        return
    change = update(pairs).where(pairs.c.id == bindparam("pair"))
    values: dict[str, Any] = {name: bindparam(name) for name in ("payload", "request")}
    rows = [{"pair": row.id, "payload": pair.to_json(), "request": pair.request} for row, pair in changed]
    connection.execute(change.values(values), rows)
    asked = {row.id: Asked(row.request, pair.request) for row, pair in changed}
    tally_rows.add(connection, run.id, "", ask_otherwise(connection, run, asked))


def done_pairs(
    connection: Connection, run: Run, image_ids: Collection[str] = (), *, after: int = -1, limit: int | None = None
) -> Iterator[Any]:
    """Rows (id, payload, request, descriptions) of the run's done pairs, of some images only where these are named.

    By their ids, above ``after`` and at most ``limit``.
    """
    columns = (pairs.c.id, pairs.c.payload, pairs.c.request, results.c.descriptions)
    query = select(*columns).join(results, answers(results))
    query = query.where(pairs.c.run_id == run.id, pairs.c.id > after, is_live())
    if image_ids:
        query = query.where(pairs.c.image_id.in_(image_ids))
    yield from connection.execute(query.order_by(pairs.c.id).limit(limit))


class Asked(NamedTuple):
    """The request of a pair before and after a change; None where it is in no input."""

    before: str | None
    after: str | None


def ask_otherwise(connection: Connection, run: Run, asked: Mapping[int, Asked]) -> Counter[str]:
    """See to what follows when pairs are asked otherwise, are withdrawn, or come back; gives the change of the counts.

    A failure of another request is forgotten, a result stays. What becomes pending gets a message; what was pending
    has one, or is in a worker's hands, and what a result answers needs none.
    """
    changed: Counter[str] = Counter()
    pending: list[int] = []
    forgotten: list[int] = []
    settled: list[int] = []  # or withdrawn
    for row in _outcomes(connection, asked):
        before, after = asked[row.id]
        failure = row.failure if row.failure == after else None
        if row.failure != failure:
            forgotten.append(row.id)
        if before is not None:
            changed.subtract(tally_rows.counted(before, row.result, row.failure, row.descriptions))
        if after is not None:
            changed.update(tally_rows.counted(after, row.result, failure, row.descriptions))
        if after in (None, row.result, failure):
            settled.append(row.id)
        elif before in (None, row.result, row.failure):
            pending.append(row.id)
    if forgotten:
        connection.execute(failures.delete().where(failures.c.pair_id.in_(forgotten)))
    if settled:
        connection.execute(claims.delete().where(claims.c.pair_id.in_(settled), claims.c.worker == ""))
    publish_again(connection, run, pending)
    return changed


def _outcomes(connection: Connection, pair_ids: Collection[int]) -> Sequence[Any]:
    """The requests of the pairs' outcomes, and nobody writes another one before this transaction ends."""
    if not pair_ids:
        return []
    lock_pairs(connection, pair_ids)
    joined = pairs.outerjoin(results, results.c.pair_id == pairs.c.id)
    joined = joined.outerjoin(failures, failures.c.pair_id == pairs.c.id)
    outcomes = (results.c.request.label("result"), failures.c.request.label("failure"), results.c.descriptions)
    query = select(pairs.c.id, *outcomes).select_from(joined).where(pairs.c.id.in_(pair_ids))
    return connection.execute(query).all()


def lock_pairs(connection: Connection, pair_ids: Collection[int]) -> None:
    """Be the only one that changes these pairs or their outcomes; SQLite has one writer at a time anyway.

    What is read in a later statement is how they stand then.
    """
    if connection.dialect.name == "postgresql" and pair_ids:
        query = select(pairs.c.id).where(pairs.c.id.in_(pair_ids)).order_by(pairs.c.id)  # one order: no deadlock
        connection.execute(query.with_for_update(key_share=True))


def publish_again(connection: Connection, run: Run, pair_ids: Iterable[int]) -> None:
    """See to it that pairs get a message which had one before: maintenance takes them up like orphaned ones."""
    rows = [
        {"pair_id": pair_id, "run_id": run.id, "worker": "", "lease_until": 0.0, "quarantined": 0, "attempts": 0,
         "lost": 0, "crash_count": 0, "detail": ""}
        for pair_id in pair_ids
        if pair_id <= run.published_upto
    ]  # fmt: skip
    for start in range(0, len(rows), _ROWS_A_STATEMENT):
        connection.execute(insert(connection, claims).on_conflict_do_nothing(), rows[start : start + _ROWS_A_STATEMENT])


def pending_after(connection: Connection, run: Run, after: int, limit: int) -> list[QueuedPair]:
    """Pairs of ids above ``after`` that have no outcome and are in nobody's hands, in the order of their ids."""
    unclaimed = ~exists().where(claims.c.pair_id == pairs.c.id)
    query = select(pairs.c.id, pairs.c.image_id).where(pairs.c.run_id == run.id, pairs.c.id > after)
    query = query.where(is_pending(), unclaimed, is_live())
    found = connection.execute(query.order_by(pairs.c.id).limit(limit))
    return [QueuedPair(row.id, row.image_id) for row in found]
