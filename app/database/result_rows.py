"""What became of pairs: descriptions bound to the request that they answer, failures likewise; written in groups.

A result whose request is not its pair's any more is stale: kept, never shown, replaced by the next one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, case, delete, func, select, update

from app.database import tally_rows
from app.database.dialect import insert, now
from app.database.pair_rows import lock_pairs, publish_again
from app.database.records import Run
from app.database.schema import WITHDRAWN, answers, claims, enqueues, failures, is_live, pairs, results, runs
from app.database.source_rows import note_contents, sources_in_order
from app.errors import FailureReason

_IDENTITY = ("run_id", "key", "image_id", "subject", "object", "subject_id", "object_id")

_MOST_SPARE = 100
"""Descriptions of older requests that are kept with a pair; the newest stay."""

OUTSIDE_REASONS = tuple(reason.value for reason in FailureReason if reason.outside)
"""Failures that are not the pair's own: every repeat of an enqueue sends them once more."""


@dataclass(frozen=True)
class Outcome:
    """How a claimed pair ended: with its descriptions, or with a reason.

    ``descriptions`` follow the pair's top K: text, finish reason, tokens, prompt tokens, key, predicate, and
    ``reused`` where they were copied.
    """

    pair_id: int
    run: str  # uuid: SQLite gives the ids of a deleted run's pairs to the next ones
    request: str  # that was answered
    attempts: int
    seconds: float = 0.0  # how long it took; the times that are kept are the database's
    descriptions: Sequence[dict[str, Any]] | None = None
    scene_key: str | None = None
    provenance: dict[str, Any] | None = None
    image: tuple[int, int, str] | None = None  # bytes, time of change (ns), sha256 of what was seen
    reason: str = ""
    detail: str = ""


def write_outcomes(connection: Connection, outcomes: Collection[Outcome], worker: str) -> dict[int, bool]:
    """Keep outcomes and end their claims; says for each pair whether it was kept.

    An outcome of a run that was deleted is dropped. A pair that has the outcome of its present request keeps it,
    whoever comes second. An outcome of an older request is kept where there is none, as stale, and its pair is given
    out again.
    """
    known = _pairs_of(connection, outcomes)
    kept: dict[int, bool] = {outcome.pair_id: False for outcome in outcomes}
    outcomes = [each for each in outcomes if each.pair_id in known and known[each.pair_id].run == each.run]
    counted: dict[int, Counter[str]] = defaultdict(Counter)
    rows: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    again: list[int] = []
    for outcome in outcomes:
        pair = known[outcome.pair_id]
        current, described = outcome.request == pair.request, outcome.descriptions is not None
        settled = pair.request in (pair.result, pair.failure)
        if not current and not settled and pair.source != WITHDRAWN:
            again.append(pair.id)
        if _is_late(pair, outcome):
            continue
        rows[described].append(_result(pair, outcome, worker) if described else _failure(pair, outcome, worker))
        if pair.source != WITHDRAWN:
            counted[pair.run_id].update(_change(pair, outcome))
        kept[pair.id] = True
    _put(connection, results, rows[True], {"started_at", "finished_at"})
    _put(connection, failures, rows[False], {"failed_at"})
    overcome = [row["pair_id"] for row in rows[True] if row["request"] == known[row["pair_id"]].request]
    connection.execute(delete(failures).where(failures.c.pair_id.in_(overcome)))
    _end_claims(connection, worker, [outcome.pair_id for outcome in outcomes], again)
    for run_id, delta in counted.items():
        tally_rows.add(connection, run_id, worker, delta)
    _note_images(connection, known, outcomes)
    return kept


def _pairs_of(connection: Connection, outcomes: Collection[Outcome]) -> dict[int, Any]:
    joined = pairs.join(enqueues, enqueues.c.id == pairs.c.enqueue_id).join(runs, runs.c.id == pairs.c.run_id)
    joined = joined.outerjoin(results, results.c.pair_id == pairs.c.id)
    joined = joined.outerjoin(failures, failures.c.pair_id == pairs.c.id)
    more = (results.c.request.label("result"), failures.c.request.label("failure"), enqueues.c.key.label("source"))
    named = (pairs.c[name] for name in _IDENTITY)
    older = case((results.c.request != pairs.c.request, results.c.descriptions)).label("older")
    query = select(pairs.c.id, pairs.c.request, runs.c.uuid.label("run"), *named, *more, older, results.c.spare)
    ids = [outcome.pair_id for outcome in outcomes]
    lock_pairs(connection, ids)
    return {row.id: row for row in connection.execute(query.select_from(joined).where(pairs.c.id.in_(ids)))}


def _is_late(pair: Any, outcome: Outcome) -> bool:
    """Whether what the pair has already goes before this outcome."""
    if outcome.descriptions is None:
        return outcome.request != pair.request or pair.request in (pair.result, pair.failure)
    if outcome.request != pair.request:
        return pair.result is not None
    return bool(pair.result == pair.request)


def _identity(pair: Row[Any]) -> dict[str, Any]:
    return {name: getattr(pair, name) for name in _IDENTITY}


def _result(pair: Row[Any], outcome: Outcome, worker: str) -> dict[str, Any]:
    return {
        "pair_id": pair.id,
        **_identity(pair),
        "descriptions": list(outcome.descriptions or ()),
        "spare": _spare(pair, outcome),
        "worker": worker,
        "attempts": outcome.attempts,
        "started_at": -outcome.seconds,  # of the present, which ``_put`` adds
        "finished_at": 0.0,
        "request": outcome.request,
        "scene_key": outcome.scene_key,
        "provenance": outcome.provenance,
    }


def _spare(pair: Any, outcome: Outcome) -> list[dict[str, Any]] | None:
    """What the pair's older requests were answered and this one does not want: a wish may come back."""
    wanted = {each.get("key") for each in outcome.descriptions or ()}
    older = {each["key"]: each for each in (*(pair.spare or ()), *(pair.older or ())) if each.get("key")}
    return [each for key, each in older.items() if key not in wanted][-_MOST_SPARE:] or None


def _failure(pair: Row[Any], outcome: Outcome, worker: str) -> dict[str, Any]:
    return {
        "pair_id": pair.id,
        "run_id": pair.run_id,
        "key": pair.key,
        "reason": outcome.reason,
        "detail": outcome.detail,
        "attempts": outcome.attempts,
        "worker": worker,
        "failed_at": 0.0,
        "request": outcome.request,
    }


def _change(pair: Row[Any], outcome: Outcome) -> Counter[str]:
    """What an outcome that is kept changes of its run's counts."""
    change = _after(pair, outcome)
    change.subtract(tally_rows.counted(pair.request, pair.result, pair.failure, None))
    return change


def _after(pair: Row[Any], outcome: Outcome) -> Counter[str]:
    if outcome.descriptions is None:
        return tally_rows.counted(pair.request, pair.result, outcome.request, None)
    return tally_rows.counted(pair.request, outcome.request, pair.failure, outcome.descriptions)


def _put(connection: Connection, table: Any, rows: list[dict[str, Any]], times: set[str]) -> None:
    """Insert rows, in place of those of an older request; ``times`` are offsets to the present."""
    if not rows:
        return
    present = connection.execute(select(now(connection))).scalar_one()
    rows = [{**row, **{name: present + row[name] for name in times}} for row in rows]
    statement = insert(connection, table)
    renewed = {name: statement.excluded[name] for name in rows[0] if name != "pair_id"}
    connection.execute(statement.on_conflict_do_update(index_elements=["pair_id"], set_=renewed), rows)


def _end_claims(connection: Connection, worker: str, ended: list[int], again: list[int]) -> None:
    connection.execute(delete(claims).where(claims.c.pair_id.in_([each for each in ended if each not in again])))
    if again:  # by whoever comes; but who has begun the new request by now goes on
        freed = {"worker": "", "lease_until": 0.0, "quarantined": 0}
        mine = and_(claims.c.pair_id.in_(again), claims.c.worker == worker)
        connection.execute(update(claims).where(mine).values(freed))


def _note_images(connection: Connection, known: dict[int, Any], outcomes: Collection[Outcome]) -> None:
    contents: dict[int, dict[str, tuple[int, int, str]]] = defaultdict(dict)
    for outcome in outcomes:
        if outcome.image is not None:
            pair = known[outcome.pair_id]
            contents[pair.run_id][pair.image_id] = outcome.image
    for run_id, seen in contents.items():
        note_contents(connection, run_id, seen)


def forget_failures(connection: Connection, run: Run, reasons: Collection[str] = ()) -> list[int]:
    """Delete the run's failures (of some reasons only), and give their pairs out again; gives the pairs' ids."""
    chosen = failures.c.run_id == run.id
    if reasons:
        chosen = and_(chosen, failures.c.reason.in_(reasons))
    lock_pairs(connection, connection.execute(select(failures.c.pair_id).where(chosen)).scalars().all())
    current = select(pairs.c.id).where(answers(failures))
    gone = connection.execute(delete(failures).where(chosen, current.exists()).returning(failures.c.pair_id))
    ids = list(gone.scalars())
    tally_rows.add(connection, run.id, "", {"failed": -len(ids)})
    publish_again(connection, run, ids)
    return ids


def failure_counts(connection: Connection, run: Run) -> dict[str, int]:
    """How many failures there are of each reason, most first."""
    number = func.count()
    query = select(failures.c.reason, number).where(failures.c.run_id == run.id)
    rows = connection.execute(query.group_by(failures.c.reason).order_by(number.desc()))
    return {str(reason): int(number) for reason, number in rows}


def finished_since(connection: Connection, run: Run, seconds: float) -> tuple[int, float]:
    """How many results of the run workers gave in the last ``seconds``, and over which span: (count, seconds).

    What an enqueue copied took no time, and tells nothing of what is to come.
    """
    present = connection.execute(select(now(connection))).scalar_one()
    recent = and_(results.c.run_id == run.id, results.c.finished_at >= present - seconds, results.c.attempts > 0)
    query = select(func.count(), func.min(results.c.started_at)).where(recent)
    count, first = connection.execute(query).one()
    return count, min(seconds, present - first) if count else 0.0


def described_pairs(connection: Connection, run: Run) -> Iterator[Any]:
    """Rows (payload, descriptions, …) of the pairs whose result answers their request, in the inputs' order, streamed.

    The order is that of ``sources_in_order``.
    """
    columns = (pairs.c.payload, pairs.c.image_path, results.c.descriptions, results.c.worker, results.c.attempts)
    more = (results.c.started_at, results.c.finished_at, results.c.provenance)
    query = select(*columns, *more).join(results, answers(results))
    streaming = connection.execution_options(yield_per=1_000)
    for ids in sources_in_order(connection, run):
        mine = and_(pairs.c.run_id == run.id, pairs.c.enqueue_id.in_(ids))
        yield from streaming.execute(query.where(mine).order_by(pairs.c.position, pairs.c.id))


def every_pair(connection: Connection, run: Run) -> Iterator[Any]:
    """Rows (payload, enqueue_id, descriptions, reason, detail) of all pairs of the inputs, in their order, streamed.

    ``descriptions`` are None where no result answers the pair's request, ``reason`` and ``detail`` where it has not
    failed; a pair that is pending has neither.
    """
    columns = (pairs.c.payload, pairs.c.enqueue_id, results.c.descriptions, failures.c.reason, failures.c.detail)
    query = select(*columns).outerjoin(results, answers(results)).outerjoin(failures, answers(failures))
    streaming = connection.execution_options(yield_per=1_000)
    for ids in sources_in_order(connection, run):
        mine = and_(pairs.c.run_id == run.id, pairs.c.enqueue_id.in_(ids))
        yield from streaming.execute(query.where(mine).order_by(pairs.c.position, pairs.c.id))


def last_finished(connection: Connection, run: Run) -> float | None:
    """When the run's newest result came, in seconds since 1970; None where there is none."""
    newest = select(func.max(results.c.finished_at)).where(results.c.run_id == run.id)
    return connection.execute(newest).scalar_one_or_none()


def provenances(connection: Connection, run: Run) -> list[dict[str, Any]]:
    """What generated the run's descriptions: engine, dtype, model and software, each combination once."""
    query = select(results.c.provenance).where(results.c.run_id == run.id, results.c.provenance.is_not(None)).distinct()
    return [dict(each) for each in connection.execute(query).scalars()]


def count_images(connection: Connection, run: Run) -> int:
    """Distinct images of the described pairs."""
    joined = pairs.join(results, answers(results))
    query = select(func.count(func.distinct(pairs.c.image_id))).select_from(joined)
    return int(connection.execute(query.where(pairs.c.run_id == run.id, is_live())).scalar_one())


def failed_pairs(connection: Connection, run: Run, limit: int) -> list[dict[str, Any]]:
    """The newest failures with their pairs' names."""
    names = (pairs.c.image_id, pairs.c.subject, pairs.c.object, pairs.c.subject_id, pairs.c.object_id)
    about = (failures.c.reason, failures.c.detail, failures.c.attempts, failures.c.worker, failures.c.failed_at)
    query = select(*names, *about).join(failures, failures.c.pair_id == pairs.c.id)
    query = query.where(failures.c.run_id == run.id).order_by(failures.c.failed_at.desc()).limit(limit)
    return [dict(row) for row in connection.execute(query).mappings()]


def scenes(connection: Connection, scene_keys: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """The descriptions that the database has of these scenes, of whatever run: scene key -> descriptions."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    query = select(results.c.scene_key, results.c.descriptions, results.c.spare)
    for key, descriptions, spare in connection.execute(query.where(results.c.scene_key.in_(scene_keys))):
        found[key] += [*descriptions, *(spare or ())]
    return found
