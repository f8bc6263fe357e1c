"""How far a run's pairs have been published into the queue of the present broker.

Pairs are published in the order of their ids, up to a mark in the run's row; a broker that lost its queue is known by
its epoch, and the mark then starts from 0. One process publishes a run at a time. The mark moves after the messages are
in Redis: a process that dies in between lets one page be published twice, and none be lost.
"""

from __future__ import annotations

from sqlalchemy import Engine, and_, case, or_, update

from app.database.dialect import now
from app.database.records import ACTIVE, Run
from app.database.schema import runs


def begin_publishing(engine: Engine, run: Run, epoch: str, publisher: str, lease_s: float) -> int | None:
    """The id up to which the run is published in this epoch; None if another process is at it, or it is not active."""
    with engine.begin() as connection:
        free = or_(runs.c.publisher.in_(("", publisher)), runs.c.publisher_until < now(connection))
        mine = and_(runs.c.id == run.id, runs.c.state == ACTIVE, free)
        values = {
            "epoch": epoch,
            "published_upto": case((runs.c.epoch == epoch, runs.c.published_upto), else_=0),
            "publisher": publisher,
            "publisher_until": now(connection) + lease_s,
        }
        statement = update(runs).where(mine).values(values).returning(runs.c.published_upto)
        return connection.execute(statement).scalar_one_or_none()


def advance(engine: Engine, run: Run, publisher: str, upto: int, lease_s: float) -> bool:
    """Move the mark; False if the run is another process's by now."""
    with engine.begin() as connection:
        mine = and_(runs.c.id == run.id, runs.c.publisher == publisher)
        values = {"published_upto": upto, "publisher_until": now(connection) + lease_s}
        return connection.execute(update(runs).where(mine).values(values)).rowcount == 1


def end_publishing(engine: Engine, run: Run, publisher: str) -> None:
    """Let others publish the run."""
    with engine.begin() as connection:
        mine = and_(runs.c.id == run.id, runs.c.publisher == publisher)
        connection.execute(update(runs).where(mine).values(publisher="", publisher_until=0.0))


def publish_from_start(engine: Engine, run: Run, upto: int) -> bool:
    """Messages were lost one by one: look at all pending pairs again. False if the mark is not ``upto`` any more."""
    with engine.begin() as connection:
        mine = and_(runs.c.id == run.id, runs.c.published_upto == upto)
        return connection.execute(update(runs).where(mine).values(published_upto=0)).rowcount == 1
