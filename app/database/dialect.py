"""What SQLite and PostgreSQL spell differently: the clock, and INSERT … ON CONFLICT.

The database's clock is one time for every worker of a farm, whatever their hosts' clocks say.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Float, Table, literal_column
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.elements import ColumnElement

_NOW = {
    # 2440587.5 is the Julian day of 1970-01-01; milliseconds are kept.
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "extract(epoch from clock_timestamp())::float8",
}
_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def now(connection: Connection) -> ColumnElement[float]:
    """An SQL expression for the present, in seconds since 1970."""
    return literal_column(_NOW[connection.dialect.name], Float)


def insert(connection: Connection, table: Table) -> Any:
    """The dialect's own INSERT, with ``on_conflict_do_nothing`` and ``on_conflict_do_update``."""
    return _INSERT[connection.dialect.name](table)
