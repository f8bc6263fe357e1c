"""Pairs of a run: stored in bulk, read back in order, told apart by what is left to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    and_,
    exists,
    func,
    or_,
    select,
    update,
)

from app.database.connection import patiently, reading
from app.database.dialect import insert, now
from app.database.run_rows import Run
from app.database.schema import claims, enqueues, failures, pairs, results, runs
from app.errors import RunError
from app.pair import Pair

_ROWS_A_STATEMENT = 2_000


class QueuedPair(NamedTuple):
    """As much of a pair as its message needs."""

    id: int
    image_id: str


class StoredPairs(NamedTuple):
    """What an enqueue stored: its id, the pairs of its inputs, and how many of these have their result already."""

    enqueue_id: int
    pairs: int
    already_done: int


def row_of(pair: Pair) -> dict[str, Any]:
    """The pair's columns, but for the ids."""
    return {
        "key": pair.key_hash,
        "position": pair.position,
        "image_id": pair.image_id,
        "image_path": pair.image_path,
        "subject": pair.subject,
        "object": pair.object,
        "subject_id": pair.subject_id,
        "object_id": pair.object_id,
        "payload": pair.to_json(),
    }


def store_pairs(
    connection: Connection,
    run: Run,
    found: Iterable[Pair],
    inputs: dict[str, Any],
    drops: dict[str, Any],
) -> StoredPairs:
    """Put an enqueue's pairs into the run, those that it knows already under their old rows.

    Raises RunError if a pair that has its result stands in these inputs otherwise (box, candidates, image) than when it
    was described.
    """
    values = {"run_id": run.id, "inputs": inputs, "pairs": 0, "drops": drops, "created_at": now(connection)}
    statement = enqueues.insert().values(values).returning(enqueues.c.id)
    enqueue_id: int = connection.execute(statement).scalar_one()
    iterator = map(row_of, found)
    grown = run.expected > 0
    while chunk := list(islice(iterator, _ROWS_A_STATEMENT)):
        if grown:
            _refuse_changed(connection, run, chunk)
        _upsert(connection, [{**row, "run_id": run.id, "enqueue_id": enqueue_id} for row in chunk])
    return _count(connection, run, enqueue_id)


def _upsert(connection: Connection, rows: list[dict[str, Any]]) -> None:
    statement = insert(connection, pairs)
    renewed = ("enqueue_id", "position", "image_path", "payload")
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["run_id", "key"], set_={name: statement.excluded[name] for name in renewed}
        ),
        rows,
    )


def _refuse_changed(connection: Connection, run: Run, chunk: list[dict[str, Any]]) -> None:
    wanted = {row["key"]: row for row in chunk}
    described = select(pairs.c.key, pairs.c.payload).join(results, results.c.pair_id == pairs.c.id)
    query = described.where(pairs.c.run_id == run.id, pairs.c.key.in_(wanted))
    for key, payload in connection.execute(query):
        row = wanted[key]
        if payload != row["payload"]:
            raise RunError(
                f"run {run.name!r} has described image {row['image_id']}, ({row['subject']!r}, {row['object']!r}) "
                f"from other inputs ({_difference(payload, row['payload'])}). Inputs may grow, not change: "
                "use another name by --run"
            )


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    name = next(name for name in {**old, **new} if old.get(name) != new.get(name))
    return f"{name}: {str(old.get(name))[:200]} then, {str(new.get(name))[:200]} now"


def _count(connection: Connection, run: Run, enqueue_id: int) -> StoredPairs:
    mine = and_(pairs.c.run_id == run.id, pairs.c.enqueue_id == enqueue_id)
    total = connection.execute(select(func.count()).select_from(pairs).where(mine)).scalar_one()
    joined = pairs.join(results, results.c.pair_id == pairs.c.id)
    done = connection.execute(select(func.count()).select_from(joined).where(mine)).scalar_one()
    everything = select(func.count()).select_from(pairs).where(pairs.c.run_id == run.id).scalar_subquery()
    connection.execute(update(enqueues).where(enqueues.c.id == enqueue_id).values(pairs=total))
    connection.execute(update(runs).where(runs.c.id == run.id).values(expected=everything))
    return StoredPairs(enqueue_id, total, done)


def open_pairs(
    engine: Engine,
    run: Run,
    *,
    enqueue_id: int | None = None,
    unclaimed: bool = False,
    page: int = 20_000,
    patience_s: float = 0.0,
) -> Iterator[list[QueuedPair]]:
    """Pages of the pairs that have neither a result nor a failure, in the order of the inputs.

    ``enqueue_id`` narrows to one enqueue's, ``unclaimed`` to those that no worker has started. Each page is its own
    short read, so that nothing is held open over a publication of hours; a database that is away is waited for as long
    as ``patience_s``.
    """
    known = [enqueue_id] if enqueue_id is not None else patiently(lambda: _enqueues_of(engine, run), patience_s)
    for each in known:
        position, last = -1, -1
        pages = partial(_open_page, engine, (run.id, each), unclaimed=unclaimed, limit=page)
        while rows := patiently(partial(pages, (position, last)), patience_s):
            position, last = rows[-1].position, rows[-1].id
            yield [QueuedPair(row.id, row.image_id) for row in rows]


def _enqueues_of(engine: Engine, run: Run) -> list[int]:
    with reading(engine) as connection:
        query = select(enqueues.c.id).where(enqueues.c.run_id == run.id).order_by(enqueues.c.id)
        return list(connection.execute(query).scalars())


def _open_page(
    engine: Engine, of: tuple[int, int], after: tuple[int, int], *, unclaimed: bool, limit: int
) -> list[Any]:
    position, last = after
    query = select(pairs.c.id, pairs.c.image_id, pairs.c.position)
    query = query.where(pairs.c.run_id == of[0], pairs.c.enqueue_id == of[1], is_open())
    # The first comparison is what the index serves; the second tells apart pairs of one position.
    query = query.where(pairs.c.position >= position, or_(pairs.c.position > position, pairs.c.id > last))
    if unclaimed:
        query = query.where(~exists().where(claims.c.pair_id == pairs.c.id))
    with reading(engine) as connection:
        return list(connection.execute(query.order_by(pairs.c.position, pairs.c.id).limit(limit)).all())


def is_open() -> ColumnElement[bool]:
    """Neither described nor failed."""
    described = exists().where(results.c.pair_id == pairs.c.id)
    failed = exists().where(failures.c.pair_id == pairs.c.id)
    return and_(~described, ~failed)


def last_account(connection: Connection, run: Run) -> dict[str, Any]:
    """What the run's last enqueue dropped, as ``Drops.as_dict`` says, and ``dropped``: reason -> count."""
    query = select(enqueues.c.drops).where(enqueues.c.run_id == run.id).order_by(enqueues.c.id.desc()).limit(1)
    return dict(connection.execute(query).scalar_one_or_none() or {})
