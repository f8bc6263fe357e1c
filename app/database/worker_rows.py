"""Which workers are up and what they serve: each says so now and then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from app.database.dialect import insert, now
from app.database.schema import workers


@dataclass(frozen=True)
class WorkerRow:
    """One worker process: ``about`` holds host, pid, model, model_keys, engine, device."""

    name: str
    about: dict[str, Any]
    started_at: float
    seen_at: float


def worker_seen(connection: Connection, name: str, about: dict[str, Any]) -> None:
    """The worker is up."""
    present = now(connection)
    values = {"name": name, "about": about, "started_at": present, "seen_at": present}
    statement = insert(connection, workers).values(values)
    seen = {"about": statement.excluded.about, "seen_at": statement.excluded.seen_at}
    connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=seen))


def worker_gone(connection: Connection, name: str) -> None:
    """The worker ended."""
    connection.execute(workers.delete().where(workers.c.name == name))


def workers_up(connection: Connection, within_s: float) -> list[WorkerRow]:
    """The workers that were seen within so many seconds, by name."""
    query = select(workers).where(workers.c.seen_at > now(connection) - within_s).order_by(workers.c.name)
    return [WorkerRow(**row) for row in connection.execute(query).mappings()]
