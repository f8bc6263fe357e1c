"""Claims: which process runs which pair, for how long that holds, and which deaths count against a pair.

A claim is a lease that its holder renews; a holder that vanishes frees its pairs when the lease ends, and the next one
carries on. What counts against a pair (a strike) is only a death that happened while it ran alone. A pair that was in a
process when that crashed, or whose holders vanished twice, runs alone from then on, so that the culprit of a batch is
found and its neighbours are cleared; those that wait behind it for their turn alone are not blamed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from sqlalchemy import Connection, Engine, Row, and_, case, delete, select, update

from app.database.dialect import insert, now
from app.database.pair_rows import QueuedPair, is_open
from app.database.result_rows import has_outcome, write_failure
from app.database.run_rows import Run, run_of_row
from app.database.schema import claims, pairs, runs
from app.pair import Pair

_LOST_BEFORE_QUARANTINE = 2


class ClaimStatus(Enum):
    """How a pair stands when a worker asks for it."""

    CLAIMED = auto()  # it is the worker's now
    SETTLED = auto()  # it has its result or its failure
    HELD = auto()  # another process runs it
    UNKNOWN = auto()  # no such run or pair: a message from another time


@dataclass(frozen=True)
class Claim:
    """A pair that this process may run."""

    run: Run
    pair_id: int
    stored: Any  # the pair as ``Pair.to_json`` gave it
    attempts: int  # this one counted in
    quarantined: bool  # nothing may run alongside it; ``begin_quarantined`` when that holds

    @property
    def pair(self) -> Pair:
        """The pair. Raises KeyError, TypeError or ValueError if what is stored is none."""
        return Pair.from_json(self.stored)


def claim_pair(
    engine: Engine,
    message: tuple[str, int],
    worker: str,
    *,
    lease_s: float,
    max_crashes: int,
    model_keys: Collection[str] | None = None,
    takeover: bool = True,
) -> tuple[ClaimStatus, Claim | None]:
    """Ask for the pair of a message ``(run uuid, pair id)``.

    ``model_keys`` are those that the worker serves: a run of another model is unknown to it, whatever queue its
    message came by. ``takeover`` False leaves expired leases alone: after the database was away all leases have ended,
    and their holders, who are about to renew them, should come first.
    """
    run_uuid, pair_id = message
    with engine.begin() as connection:
        pair = connection.execute(_pair_query(run_uuid, pair_id)).one_or_none()
        if pair is None or (model_keys is not None and pair.run_model_key not in model_keys):
            return ClaimStatus.UNKNOWN, None
        if pair.settled:
            return ClaimStatus.SETTLED, None
        held = _lock(connection, pair.run_id, pair_id)
        # On PostgreSQL the outcome may have come while we waited for the lock; SQLite has one writer at a time.
        if connection.dialect.name == "postgresql" and has_outcome(connection, pair_id):
            connection.execute(delete(claims).where(claims.c.pair_id == pair_id))
            return ClaimStatus.SETTLED, None
        if held.worker not in ("", worker) and not (held.expired and takeover):
            return ClaimStatus.HELD, None
        vanished = held.worker not in ("", worker)
        lost, crash_count = held.lost + vanished, held.crash_count + (vanished and held.quarantined)
        if crash_count >= max_crashes:
            detail = held.detail or "its worker vanished each time it ran this pair alone"
            write_failure(connection, pair, "kills its worker", detail, attempts=held.attempts, worker=worker)
            return ClaimStatus.SETTLED, None
        quarantined = bool(crash_count or lost >= _LOST_BEFORE_QUARANTINE)
        values = {
            "worker": worker,
            "lease_until": now(connection) + lease_s,
            "quarantined": 0,
            "attempts": held.attempts + 1,
            "lost": lost,
            "crash_count": crash_count,
        }
        connection.execute(update(claims).where(claims.c.pair_id == pair_id).values(values))
        run = run_of_row(pair._mapping)
        claim = Claim(run, pair_id, pair.payload, attempts=held.attempts + 1, quarantined=quarantined)
        return ClaimStatus.CLAIMED, claim


def begin_quarantined(engine: Engine, worker: str, pair_id: int) -> bool:
    """From now on the pair runs by itself in its process: what ends the process is the pair's doing.

    False if it is the process's no more.
    """
    with engine.begin() as connection:
        mine = and_(claims.c.worker == worker, claims.c.pair_id == pair_id)
        return connection.execute(update(claims).where(mine).values(quarantined=1)).rowcount == 1


def _pair_query(run_uuid: str, pair_id: int) -> Any:
    """The pair with its run (columns ``run_…``) and whether it has its outcome: one round trip for each claim."""
    of_run = (column.label(f"run_{name}") for name, column in runs.c.items() if name != "id")
    query = select(pairs, (~is_open()).label("settled"), *of_run).join(runs, runs.c.id == pairs.c.run_id)
    return query.where(pairs.c.id == pair_id, runs.c.uuid == run_uuid)


def _lock(connection: Connection, run_id: int, pair_id: int) -> Row[Any]:
    empty = {
        "worker": "",
        "lease_until": 0.0,
        "quarantined": 0,
        "attempts": 0,
        "lost": 0,
        "crash_count": 0,
        "detail": "",
    }
    statement = insert(connection, claims).values(pair_id=pair_id, run_id=run_id, **empty)
    # An update that changes nothing locks the row that is there, and gives it.
    statement = statement.on_conflict_do_update(index_elements=["pair_id"], set_={"pair_id": pair_id})
    expired = (claims.c.lease_until < now(connection)).label("expired")
    return connection.execute(statement.returning(claims, expired)).one()


def renew_claims(engine: Engine, worker: str, lease_s: float, pair_ids: Collection[int]) -> int:
    """Put off the end of the leases of what a process has in flight; gives how many it still holds."""
    if not pair_ids:
        return 0
    with engine.begin() as connection:
        held = update(claims).where(claims.c.worker == worker, claims.c.pair_id.in_(pair_ids))
        return connection.execute(held.values(lease_until=now(connection) + lease_s)).rowcount


def release_claims(engine: Engine, worker: str, pair_ids: Collection[int] | None = None) -> int:
    """Give back pairs (all of the process's without ``pair_ids``) that nobody is to blame for; gives how many."""
    with engine.begin() as connection:
        return _free(connection, worker, pair_ids)


def record_crash(engine: Engine, worker: str, detail: str) -> int:
    """Judge a crash of ``worker``: a strike for the pair that ran alone, or all pairs run alone from now on.

    Gives how many pairs it held.
    """
    with engine.begin() as connection:
        held = claims.c.worker == worker
        culprit = update(claims).where(held, claims.c.quarantined == 1)
        if not connection.execute(culprit.values(crash_count=claims.c.crash_count + 1, detail=detail)).rowcount:
            suspects = update(claims).where(held, claims.c.lost < _LOST_BEFORE_QUARANTINE)
            connection.execute(suspects.values(lost=_LOST_BEFORE_QUARANTINE, detail=detail))
        return _free(connection, worker, None)


def _free(connection: Connection, worker: str, pair_ids: Collection[int] | None) -> int:
    mine = claims.c.worker == worker
    if pair_ids is not None:
        mine = and_(mine, claims.c.pair_id.in_(pair_ids))
    return connection.execute(update(claims).where(mine).values(worker="", lease_until=0.0, quarantined=0)).rowcount


def take_lost_pairs(
    engine: Engine, runs_: Collection[Run], *, again_after_s: float, takeover: bool = True, limit: int = 1_000
) -> list[tuple[Run, QueuedPair]]:
    """The started pairs that nobody runs any more, to be published again; each is given out once in ``again_after_s``.

    ``takeover`` as in ``claim_pair``: False gives only those that were freed.
    """
    if not runs_:
        return []
    by_id = {run.id: run for run in runs_}
    with engine.begin() as connection:
        expired = and_(claims.c.run_id.in_(by_id), claims.c.lease_until < now(connection))
        if not takeover:
            expired = and_(expired, claims.c.worker == "")
        wanted = select(claims.c.pair_id).where(expired).limit(limit)
        if connection.dialect.name == "postgresql":
            wanted = wanted.with_for_update(skip_locked=True)
        vanished = claims.c.worker != ""
        freed = (
            update(claims)
            .where(claims.c.pair_id.in_(wanted), claims.c.lease_until < now(connection))
            .values(
                worker="",
                quarantined=0,
                lease_until=now(connection) + again_after_s,
                lost=claims.c.lost + case((vanished, 1), else_=0),
                crash_count=claims.c.crash_count + case((and_(vanished, claims.c.quarantined == 1), 1), else_=0),
            )
            .returning(claims.c.pair_id)
        )
        ids = connection.execute(freed).scalars().all()
        query = select(pairs.c.id, pairs.c.image_id, pairs.c.run_id).where(pairs.c.id.in_(ids))
        found = connection.execute(query.order_by(pairs.c.enqueue_id, pairs.c.position))
        return [(by_id[row.run_id], QueuedPair(row.id, row.image_id)) for row in found]
