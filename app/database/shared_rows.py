"""Pairs that more than one source of a run holds, and what each of these says of them: none is lost when one lets go.

A pair has one owner among the sources that hold it, whose version its row is. Where another one says the same, its
version is not written out; where it says something else, it is kept for the day on which the owner lets go.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, bindparam, exists, select, update

from app.database.dialect import insert
from app.database.records import Run
from app.database.schema import pair_sources, pairs

_ROWS_A_STATEMENT = 2_000


class Holder(NamedTuple):
    """A source that holds a pair: where, and what it says of it; None if that is what the pair's row says."""

    source_id: int
    position: int
    payload: dict[str, Any] | None


def are_there(connection: Connection, run: Run) -> bool:
    """Whether any pair of the run is held by more than one source."""
    return bool(connection.execute(select(exists().where(pair_sources.c.run_id == run.id))).scalar_one())


def share(connection: Connection, run: Run, held: Iterable[tuple[int, int, int]]) -> None:
    """Note that sources hold pairs and say what their rows say: (pair, source, position) each."""
    rows = [
        {"run_id": run.id, "pair_id": pair, "enqueue_id": source, "position": position, "payload": None}
        for pair, source, position in held
    ]
    statement = insert(connection, pair_sources)
    renewed = {"position": statement.excluded.position, "payload": None}
    statement = statement.on_conflict_do_update(index_elements=["pair_id", "enqueue_id"], set_=renewed)
    for start in range(0, len(rows), _ROWS_A_STATEMENT):
        connection.execute(statement, rows[start : start + _ROWS_A_STATEMENT])


def keep_versions(connection: Connection, before: Mapping[int, dict[str, Any]]) -> None:
    """The rows of these pairs are about to say something else than ``before``, which their holders go on saying."""
    same = and_(pair_sources.c.pair_id == bindparam("pair"), pair_sources.c.payload.is_(None))
    rows = [{"pair": pair_id, "before": payload} for pair_id, payload in before.items()]
    if rows:
        connection.execute(update(pair_sources).where(same).values(payload=bindparam("before")), rows)


def renew(connection: Connection, source_id: int, positions: Mapping[int, int]) -> None:
    """The rows of these pairs say what the source says, which holds them at other positions than before."""
    mine = and_(pair_sources.c.pair_id == bindparam("pair"), pair_sources.c.enqueue_id == source_id)
    rows = [{"pair": pair_id, "at": position} for pair_id, position in positions.items()]
    if rows:
        connection.execute(update(pair_sources).where(mine).values(position=bindparam("at"), payload=None), rows)


def let_go(connection: Connection, source_id: int, keep: Collection[int]) -> None:
    """The source holds these pairs and no other ones any more."""
    query = select(pair_sources.c.pair_id).where(pair_sources.c.enqueue_id == source_id)
    gone = [pair_id for pair_id in connection.execute(query).scalars() if pair_id not in keep]
    for start in range(0, len(gone), _ROWS_A_STATEMENT):
        some = pair_sources.c.pair_id.in_(gone[start : start + _ROWS_A_STATEMENT])
        connection.execute(pair_sources.delete().where(pair_sources.c.enqueue_id == source_id, some))


def holders(connection: Connection, pair_ids: Collection[int]) -> dict[int, list[Holder]]:
    """Who holds these pairs; those of one source alone are left out."""
    found: dict[int, list[Holder]] = defaultdict(list)
    query = select(pair_sources).where(pair_sources.c.pair_id.in_(pair_ids))
    for row in connection.execute(query):
        found[row.pair_id].append(Holder(row.enqueue_id, row.position, row.payload))
    return found


def settle(connection: Connection, run: Run, ranks: Mapping[int, int]) -> None:
    """Give each shared pair to the first source, by ``ranks``, of those that say what its row says."""
    joined = pair_sources.join(pairs, pairs.c.id == pair_sources.c.pair_id)
    columns = (pair_sources.c.pair_id, pair_sources.c.enqueue_id, pair_sources.c.position)
    query = select(*columns, pairs.c.enqueue_id.label("owner")).select_from(joined)
    query = query.where(pair_sources.c.run_id == run.id, pair_sources.c.payload.is_(None))
    best: dict[int, Any] = {}
    for row in connection.execute(query):
        if row.pair_id not in best or ranks[row.enqueue_id] < ranks[best[row.pair_id].enqueue_id]:
            best[row.pair_id] = row
    moved = [
        {"pair": row.pair_id, "source": row.enqueue_id, "at": row.position}
        for row in best.values()
        if row.enqueue_id != row.owner
    ]
    change = update(pairs).where(pairs.c.id == bindparam("pair"))
    if moved:
        connection.execute(change.values(enqueue_id=bindparam("source"), position=bindparam("at")), moved)
