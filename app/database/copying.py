"""A whole database copied into another one: from SQLite to PostgreSQL when a farm grows, or back."""

from __future__ import annotations

from itertools import islice
from typing import Any

from sqlalchemy import Connection, Engine, Table, func, select, text

from app.database.connection import reading
from app.database.schema import claims, metadata, runs, workers
from app.errors import FarmError

_ROWS_A_STATEMENT = 1_000
_TRANSIENT = (claims.name, workers.name)
"""What belongs to processes that run on the old database: orphans are found again by their missing outcomes."""


def copy_database(source: Engine, target: Engine) -> dict[str, int]:
    """Copy every run with all that belongs to it; table -> rows. Raises FarmError if the target holds runs already.

    One snapshot is read, one transaction is written. Queues are not copied: what is pending is published again.
    """
    copied: dict[str, int] = {}
    with reading(source) as old, target.begin() as new:
        if new.execute(select(runs.c.id).limit(1)).first() is not None:
            raise FarmError("the target database holds runs already; copy into an empty one")
        for table in metadata.sorted_tables:
            if table.name not in _TRANSIENT:
                copied[table.name] = _copy(old, new, table)
        new.execute(runs.update().values(epoch=None, published_upto=0, publisher="", publisher_until=0.0))
    return copied


def _copy(old: Connection, new: Connection, table: Table) -> int:
    count = 0
    rows = iter(old.execution_options(yield_per=_ROWS_A_STATEMENT).execute(select(table)).mappings())
    while chunk := list(islice(rows, _ROWS_A_STATEMENT)):
        values: list[dict[str, Any]] = [{column.key: row[column] for column in table.columns} for row in chunk]
        new.execute(table.insert(), values)
        count += len(values)
    if new.dialect.name == "postgresql" and "id" in table.columns:
        highest = select(func.coalesce(func.max(table.c.id), 1)).scalar_subquery()
        new.execute(select(func.setval(text(f"pg_get_serial_sequence('{table.name}', 'id')"), highest)))
    return count
