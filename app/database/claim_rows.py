"""Claims: which process runs which pair, for how long that holds, and which deaths count against a pair.

A claim is a lease that its holder renews; a holder that vanishes frees its pairs when the lease ends, and the next one
carries on. What counts against a pair (``crash_count``) is only a death that happened while it ran alone. A pair that
was in a process when that crashed, or whose holders vanished twice, runs alone from then on (it is quarantined), so
that the culprit of a batch is found and its neighbours are cleared; those that wait for their turn alone are not
blamed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from sqlalchemy import Connection, Engine, Row, and_, case, delete, or_, select, update

from app.database.dialect import insert, now
from app.database.pair_rows import publish_again
from app.database.records import ACTIVE, PAUSED, QueuedPair, Run
from app.database.run_rows import runs_by_uuid
from app.database.schema import WITHDRAWN, claims, enqueues, failures, pairs, results
from app.pair import Pair

_LOST_BEFORE_QUARANTINE = 2

Message = tuple[str, int]
"""(run uuid, pair id): all that a message holds."""


class ClaimStatus(Enum):
    """How a pair stands when a worker asks for it."""

    CLAIMED = auto()  # it is the worker's now
    SETTLED = auto()  # it has its result or its failure
    HELD = auto()  # another process runs it
    UNKNOWN = auto()  # no such run or pair, or another model's: a message from another time
    INACTIVE = auto()  # its run is paused or cancelled
    POISONOUS = auto()  # it ended its worker each time: the claimant's to fail


@dataclass(frozen=True)
class Claim:
    """A pair that this process may run."""

    run: Run
    pair_id: int
    stored: Any  # the pair as ``Pair.to_json`` gave it
    attempts: int  # this one counted in
    quarantined: bool  # nothing may run alongside it; ``begin_quarantined`` when that holds
    request: str = ""  # what is asked
    image_root: str = ""  # of the source, on the producer's host
    image_prefixes: tuple[tuple[str, str], ...] = ()
    known: tuple[dict[str, Any], ...] = ()  # descriptions of older requests of this pair
    crash: str = ""  # how its worker last ended over it

    @property
    def pair(self) -> Pair:
        """The pair. Raises KeyError, TypeError or ValueError if what is stored is none."""
        return Pair.from_json(self.stored)


@dataclass(frozen=True, kw_only=True)
class Claimant:
    """Who claims, and on which terms."""

    worker: str
    lease_s: float
    max_crashes: int
    model_keys: Collection[str] | None = None  # a run of another model is unknown; None serves all
    only_run: str | None = None  # a run's uuid, where the process works for that one alone
    takeover: bool = True
    """False leaves expired leases alone: after the database was away all leases have ended, and their holders, who are
    about to renew them, should come first."""


def claim_pairs(
    connection: Connection, messages: Sequence[Message], claimant: Claimant
) -> dict[Message, tuple[ClaimStatus, Claim | None]]:
    """Ask for the pairs of messages, all in one transaction and a few statements."""
    answers: dict[Message, tuple[ClaimStatus, Claim | None]] = {}
    runs = runs_by_uuid(connection, {uuid for uuid, _ in messages})
    found = _pairs(connection, [pair_id for _, pair_id in messages])
    wanted: dict[Message, Row[Any]] = {}
    for message in messages:
        run, pair = runs.get(message[0]), found.get(message[1])
        status = _standing(run, pair, claimant)
        if status is None and pair is not None:
            wanted[message] = pair
        else:
            answers[message] = status or ClaimStatus.UNKNOWN, None
        if status is ClaimStatus.INACTIVE and run is not None and run.state == PAUSED:
            publish_again(connection, run, [message[1]])  # once it is resumed: this message is acknowledged away
    _end_settled(connection, [row.id for row in found.values() if _wants_nothing(row)])
    held = _lock(connection, [*wanted.values()], claimant)
    settled = _settled_meanwhile(connection, [pair.id for pair in wanted.values()])
    for message, pair in wanted.items():
        answers[message] = _answer(connection, runs[message[0]], pair, held[pair.id], claimant, pair.id in settled)
    return answers


def claim_pair(engine: Engine, message: Message, claimant: Claimant) -> tuple[ClaimStatus, Claim | None]:
    """``claim_pairs`` for one."""
    with engine.begin() as connection:
        return claim_pairs(connection, [message], claimant)[message]


def begin_quarantined(engine: Engine, worker: str, pair_id: int) -> bool:
    """From now on the pair runs by itself in its process: what ends the process is the pair's doing.

    False if it is the process's no more.
    """
    with engine.begin() as connection:
        mine = and_(claims.c.worker == worker, claims.c.pair_id == pair_id)
        return connection.execute(update(claims).where(mine).values(quarantined=1)).rowcount == 1


def _pairs(connection: Connection, pair_ids: Collection[int]) -> dict[int, Any]:
    joined = pairs.join(enqueues, enqueues.c.id == pairs.c.enqueue_id)
    joined = joined.outerjoin(results, results.c.pair_id == pairs.c.id)
    joined = joined.outerjoin(failures, failures.c.pair_id == pairs.c.id)
    columns = ("id", "run_id", "payload", "request")
    more = (enqueues.c.key.label("source"), enqueues.c.image_root, enqueues.c.image_prefixes)
    outcomes = (results.c.request.label("result"), failures.c.request.label("failure"))
    older = case((results.c.request != pairs.c.request, results.c.descriptions)).label("older")
    query = select(*(pairs.c[name] for name in columns), *more, *outcomes, older, results.c.spare).select_from(joined)
    return {row.id: row for row in connection.execute(query.where(pairs.c.id.in_(pair_ids)))}


def _standing(run: Run | None, pair: Row[Any] | None, claimant: Claimant) -> ClaimStatus | None:
    """What is known of a pair before its claim is looked at; None if it may be claimed."""
    if run is None or pair is None or pair.run_id != run.id or pair.source == WITHDRAWN:
        return ClaimStatus.UNKNOWN
    if claimant.model_keys is not None and run.model_key not in claimant.model_keys:
        return ClaimStatus.UNKNOWN
    if claimant.only_run not in (None, run.uuid):
        return ClaimStatus.UNKNOWN
    if pair.request in (pair.result, pair.failure):
        return ClaimStatus.SETTLED
    return None if run.state == ACTIVE else ClaimStatus.INACTIVE


def _lock(connection: Connection, rows: Sequence[Row[Any]], claimant: Claimant) -> dict[int, Row[Any]]:
    """Take what may be taken, in one statement; gives the claims as they are then."""
    if not rows:
        return {}
    statement = insert(connection, claims)
    present, me = now(connection), claimant.worker
    expired = claims.c.lease_until < present if claimant.takeover else claims.c.lease_until < 0
    vanished = and_(claims.c.worker.not_in(("", me)), expired)
    free = or_(claims.c.worker.in_(("", me)), expired)
    crashed = and_(vanished, claims.c.quarantined == 1)
    renewed = {
        "worker": case((free, me), else_=claims.c.worker),
        "lease_until": case((free, present + claimant.lease_s), else_=claims.c.lease_until),
        "attempts": claims.c.attempts + case((free, 1), else_=0),
        "lost": claims.c.lost + case((vanished, 1), else_=0),
        "crash_count": claims.c.crash_count + case((crashed, 1), else_=0),
        "quarantined": case((free, 0), else_=claims.c.quarantined),
    }
    values = [
        {"pair_id": row.id, "run_id": row.run_id, "worker": me, "lease_until": present + claimant.lease_s,
         "quarantined": 0, "attempts": 1, "lost": 0, "crash_count": 0, "detail": ""}
        for row in sorted(rows, key=lambda row: int(row.id))  # one order for all processes: no deadlock
    ]  # fmt: skip
    statement = statement.values(values).on_conflict_do_update(index_elements=["pair_id"], set_=renewed)
    return {row.pair_id: row for row in connection.execute(statement.returning(claims))}


def _wants_nothing(pair: Row[Any]) -> bool:
    """Whether it has its outcome, or is in no input any more."""
    return pair.source == WITHDRAWN or pair.request in (pair.result, pair.failure)


def _end_settled(connection: Connection, pair_ids: Sequence[int]) -> None:
    """A free claim of a pair that wants nothing would be published for ever."""
    if pair_ids:
        connection.execute(delete(claims).where(claims.c.pair_id.in_(pair_ids), claims.c.worker == ""))


def _settled_meanwhile(connection: Connection, pair_ids: Sequence[int]) -> set[int]:
    """On PostgreSQL outcomes may have come while we waited for the locks; SQLite has one writer at a time."""
    if connection.dialect.name != "postgresql" or not pair_ids:
        return set()
    found = _pairs(connection, pair_ids)
    return {row.id for row in found.values() if row.request in (row.result, row.failure)}


def _answer(
    connection: Connection, run: Run, pair: Row[Any], held: Row[Any], claimant: Claimant, settled: bool
) -> tuple[ClaimStatus, Claim | None]:
    if settled:
        connection.execute(delete(claims).where(claims.c.pair_id == pair.id))
        return ClaimStatus.SETTLED, None
    if held.worker != claimant.worker:
        return ClaimStatus.HELD, None
    status = ClaimStatus.CLAIMED
    if held.crash_count >= claimant.max_crashes:
        status = ClaimStatus.POISONOUS
    claim = Claim(
        run,
        pair.id,
        pair.payload,
        attempts=held.attempts,
        quarantined=bool(held.crash_count or held.lost >= _LOST_BEFORE_QUARANTINE),
        request=pair.request,
        image_root=pair.image_root or run.image_root,
        image_prefixes=tuple((old, new) for old, new in pair.image_prefixes or ()),
        known=(*(pair.older or ()), *(pair.spare or ())),
        crash=held.detail,
    )
    return status, claim


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
    """Judge a crash of ``worker``: it counts against the pair that ran alone, or all pairs run alone from now on.

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


def take_orphans(
    engine: Engine,
    runs_: Collection[Run],
    *,
    again_after_s: float,
    takeover: bool = True,
    waiting: Collection[int] = (),
    limit: int = 5_000,
) -> list[tuple[Run, QueuedPair]]:
    """The pairs that were given out and are in nobody's hands, to be published again; each is given out once in
    ``again_after_s``.

    ``takeover`` as in ``Claimant``: False gives only those that were freed. ``waiting`` are the ids of runs of which
    something that was published again still waits: nothing of theirs is given out a second time.
    """
    if not runs_:
        return []
    by_id = {run.id: run for run in runs_}
    with engine.begin() as connection:
        expired = and_(claims.c.run_id.in_(by_id), claims.c.lease_until < now(connection))
        if not takeover:
            expired = and_(expired, claims.c.worker == "")
        if waiting:
            first = or_(claims.c.worker != "", claims.c.lease_until == 0.0)
            expired = and_(expired, or_(claims.c.run_id.not_in(waiting), first))
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
