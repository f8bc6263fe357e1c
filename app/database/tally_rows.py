"""Counts of a run as sums of deltas: each process has its own row, so that no row is written by all.

A delta is written in the transaction that changes the outcome. ``recount`` counts everything in one snapshot, which
is what the sums must equal. Marks of texts (``MARKS``) have rows of their own, in which ``texts`` counts the marked
ones: another mark needs no new column, and a process that writes none of them no row.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, and_, case, func, select

from app.database.dialect import insert, now
from app.database.records import Counts, Run
from app.database.schema import TALLIED, claims, failures, is_live, pairs, results, tallies

MARKS = {"texts_repeating": "repeats", "texts_unclosed": "unclosed"}
"""What is counted of texts by a mark that their row bears (``workers.text_rows``)."""

_LONGEST = 200  # characters of a row's key
_OF = "\t"  # between a mark's name and its process's, in the key of a row


def counted(
    request: str, result: str | None, failure: str | None, descriptions: Iterable[Mapping[str, Any]] | None
) -> Counter[str]:
    """What one pair that is in the inputs adds to its run's counts, by its request and those of its outcomes.

    A change of a pair is counted as what it adds after it less what it added before.
    """
    tally = Counter(pairs=1)
    if result == request:
        tally += Counter(done=1)
        for each in descriptions or ():
            cut, reused = each["finish_reason"] == "length", bool(each.get("reused"))
            tally += Counter(texts=1, tokens=int(each["tokens"]), texts_reused=int(reused), texts_cut=int(cut))
            tally += Counter({name: int(bool(each.get(mark))) for name, mark in MARKS.items()})
        return tally
    tally += Counter(failed=int(failure == request), stale=int(result is not None))
    return tally


def add(connection: Connection, run_id: int, process: str, delta: Mapping[str, int]) -> None:
    """Count something of a run under a process's name ("" for a producer)."""
    for mark in MARKS:
        if delta.get(mark):
            add(connection, run_id, _row_of(mark, process), {"texts": delta[mark]})
    changed = {name: value for name, value in delta.items() if value and name not in MARKS}
    if not changed:
        return
    statement = insert(connection, tallies).values(run_id=run_id, process=process, **changed)
    statement = statement.on_conflict_do_update(
        index_elements=["run_id", "process"],
        set_={name: tallies.c[name] + statement.excluded[name] for name in changed},
    )
    connection.execute(statement)


def fold(connection: Connection, process: str) -> None:
    """Put an ended process's counts into the run's common row."""
    for mark in ("", *MARKS):
        ended = tallies.delete().where(tallies.c.process == _row_of(mark, process)).returning(tallies)
        for row in connection.execute(ended).mappings():
            add(connection, row["run_id"], _row_of(mark, ""), {name: row[name] for name in TALLIED})


def _row_of(mark: str, process: str) -> str:
    """The key of a process's row: of its counts by name ("" for ``mark``), or of one mark's."""
    if not mark:
        return process
    if len(mark + _OF + process) > _LONGEST:
        process = hashlib.blake2b(process.encode(), digest_size=16).hexdigest()
    return f"{mark}{_OF}{process}"


def counts_of(connection: Connection, run: Run) -> Counts:
    """The run's counts: a sum over a few rows."""
    total: Counter[str] = Counter()
    for row in connection.execute(select(tallies).where(tallies.c.run_id == run.id)).mappings():
        mark = row["process"].partition(_OF)[0] if _OF in row["process"] else ""
        total.update({mark: row["texts"]} if mark in MARKS else {name: row[name] for name in TALLIED})
    return Counts(**{name: int(total[name]) for name in (*TALLIED, *MARKS)})


def claimed(connection: Connection, run: Run) -> int:
    """Pairs that a living worker has claimed."""
    held = and_(claims.c.run_id == run.id, claims.c.worker != "", claims.c.lease_until >= now(connection))
    return int(connection.execute(select(func.count()).select_from(claims).where(held)).scalar_one())


def recount(connection: Connection, run: Run) -> Counts:
    """The pairs' counts by looking at every one; the texts' are left at 0. Takes as long as the run is large."""
    joined = pairs.outerjoin(results, results.c.pair_id == pairs.c.id)
    joined = joined.outerjoin(failures, failures.c.pair_id == pairs.c.id)
    described, older = results.c.request == pairs.c.request, results.c.request != pairs.c.request
    failed = and_(failures.c.request == pairs.c.request, func.coalesce(results.c.request, "-") != pairs.c.request)
    numbers = (func.coalesce(func.sum(case((condition, 1), else_=0)), 0) for condition in (described, failed, older))
    query = select(func.count(), *numbers).select_from(joined).where(pairs.c.run_id == run.id, is_live())
    return Counts(*map(int, connection.execute(query).one()))
