"""What became of a pair: its one result or its one failure, written once; and the counts of both."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, and_, delete, func, select

from app.database.dialect import insert, now
from app.database.run_rows import Run
from app.database.schema import claims, failures, pairs, results

_IDENTITY = ("run_id", "key", "image_id", "subject", "object", "subject_id", "object_id")


class Counts(NamedTuple):
    """A run's pairs by what became of them."""

    expected: int
    done: int
    failed: int
    claimed: int


def has_outcome(connection: Connection, pair_id: int) -> bool:
    """Whether the pair is described or failed."""
    for table in (results, failures):
        if connection.execute(select(table.c.pair_id).where(table.c.pair_id == pair_id)).first():
            return True
    return False


def write_result(
    connection: Connection,
    pair_id: int,
    descriptions: list[dict[str, Any]],
    *,
    worker: str,
    attempts: int,
    seconds: float,
) -> bool:
    """Keep a pair's descriptions and end its claim; False, and nothing changed, if it had its result already.

    ``seconds`` is how long it took; the times that are kept are the database's.
    """
    identity = select(pairs.c.id, *(pairs.c[name] for name in _IDENTITY)).where(pairs.c.id == pair_id)
    row = connection.execute(identity).one()
    values = {
        "pair_id": pair_id,
        **{name: getattr(row, name) for name in _IDENTITY},
        "descriptions": descriptions,
        "worker": worker,
        "attempts": attempts,
        "started_at": now(connection) - seconds,
        "finished_at": now(connection),
    }
    statement = insert(connection, results).values(values).on_conflict_do_nothing().returning(results.c.pair_id)
    written = connection.execute(statement).first() is not None  # psycopg counts no rows of such an insert
    connection.execute(delete(failures).where(failures.c.pair_id == pair_id))
    connection.execute(delete(claims).where(claims.c.pair_id == pair_id))
    return written


def write_failure(
    connection: Connection, pair: Row[Any], reason: str, detail: str, *, attempts: int, worker: str
) -> None:
    """Keep why a pair cannot be done and end its claim; a result that is there already stays the outcome."""
    connection.execute(delete(claims).where(claims.c.pair_id == pair.id))
    if connection.execute(select(results.c.pair_id).where(results.c.pair_id == pair.id)).first():
        return
    values = {
        "pair_id": pair.id,
        "run_id": pair.run_id,
        "key": pair.key,
        "reason": reason,
        "detail": detail,
        "attempts": attempts,
        "worker": worker,
        "failed_at": now(connection),
    }
    connection.execute(insert(connection, failures).values(values).on_conflict_do_nothing())


def fail_pair(connection: Connection, pair_id: int, reason: str, detail: str, *, attempts: int, worker: str) -> None:
    """``write_failure`` by the pair's id."""
    pair = connection.execute(select(pairs).where(pairs.c.id == pair_id)).one()
    write_failure(connection, pair, reason, detail, attempts=attempts, worker=worker)


def forget_failures(connection: Connection, run: Run, reasons: Collection[str] = ()) -> list[int]:
    """Delete the run's failures (of some reasons only), so that they may be tried again; gives their pairs' ids."""
    chosen = failures.c.run_id == run.id
    if reasons:
        chosen = and_(chosen, failures.c.reason.in_(reasons))
    return list(connection.execute(delete(failures).where(chosen).returning(failures.c.pair_id)).scalars())


def count_outcomes(connection: Connection, run: Run, enqueue_id: int | None = None) -> Counts:
    """The run's counts, or those of one enqueue's pairs."""
    mine = pairs.c.run_id == run.id
    if enqueue_id is not None:
        mine = and_(mine, pairs.c.enqueue_id == enqueue_id)
    expected = connection.execute(select(func.count()).select_from(pairs).where(mine)).scalar_one()
    counts = [expected]
    for table in (results, failures):
        if enqueue_id is None:
            query = select(func.count()).select_from(table).where(table.c.run_id == run.id)
        else:
            joined = pairs.join(table, table.c.pair_id == pairs.c.id)
            query = select(func.count()).select_from(joined).where(mine)
        counts.append(connection.execute(query).scalar_one())
    held = and_(claims.c.run_id == run.id, claims.c.worker != "", claims.c.lease_until >= now(connection))
    running = connection.execute(select(func.count()).select_from(claims).where(held)).scalar_one()
    expected, done, failed = counts
    return Counts(expected, done, failed, running)


def failure_counts(connection: Connection, run: Run) -> dict[str, int]:
    """How many failures there are of each reason, most first."""
    number = func.count()
    query = select(failures.c.reason, number).where(failures.c.run_id == run.id)
    rows = connection.execute(query.group_by(failures.c.reason).order_by(number.desc()))
    return {str(reason): int(number) for reason, number in rows}


def finished_since(connection: Connection, run: Run, seconds: float) -> tuple[int, float]:
    """How many results of the run came in the last ``seconds``, and over which span: (count, seconds)."""
    present = connection.execute(select(now(connection))).scalar_one()
    recent = and_(results.c.run_id == run.id, results.c.finished_at >= present - seconds)
    query = select(func.count(), func.min(results.c.started_at)).where(recent)
    count, first = connection.execute(query).one()
    return count, min(seconds, present - first) if count else 0.0


def described_pairs(connection: Connection, run: Run, enqueue_id: int | None = None) -> Iterator[Any]:
    """Rows (image_id, payload, descriptions, …) of the described pairs, in the order of the inputs, streamed."""
    columns = (
        pairs.c.payload,
        pairs.c.image_path,
        results.c.descriptions,
        results.c.worker,
        results.c.attempts,
    )
    times = (results.c.started_at, results.c.finished_at)
    query = select(*columns, *times).join(results, results.c.pair_id == pairs.c.id)
    query = query.where(pairs.c.run_id == run.id)
    if enqueue_id is not None:
        query = query.where(pairs.c.enqueue_id == enqueue_id)
    query = query.order_by(pairs.c.enqueue_id, pairs.c.position, pairs.c.id)
    yield from connection.execution_options(yield_per=1_000).execute(query)


def count_images(connection: Connection, run: Run, enqueue_id: int | None = None) -> int:
    """Distinct images of the described pairs."""
    if enqueue_id is None:
        query = select(func.count(func.distinct(results.c.image_id))).where(results.c.run_id == run.id)
    else:
        joined = pairs.join(results, results.c.pair_id == pairs.c.id)
        query = select(func.count(func.distinct(pairs.c.image_id))).select_from(joined)
        query = query.where(pairs.c.run_id == run.id, pairs.c.enqueue_id == enqueue_id)
    return int(connection.execute(query).scalar_one())


def failed_pairs(connection: Connection, run: Run, limit: int) -> list[dict[str, Any]]:
    """The newest failures with their pairs' names."""
    names = (pairs.c.image_id, pairs.c.subject, pairs.c.object, pairs.c.subject_id, pairs.c.object_id)
    about = (failures.c.reason, failures.c.detail, failures.c.attempts, failures.c.worker, failures.c.failed_at)
    query = select(*names, *about).join(failures, failures.c.pair_id == pairs.c.id)
    query = query.where(failures.c.run_id == run.id).order_by(failures.c.failed_at.desc()).limit(limit)
    return [dict(row) for row in connection.execute(query).mappings()]
