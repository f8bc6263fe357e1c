"""The database's clock: one time for every worker of a farm, whatever their hosts' clocks say."""

from __future__ import annotations

from sqlalchemy import Connection, Float, literal_column
from sqlalchemy.sql.elements import ColumnElement

_NOW = {
    # 2440587.5 is the Julian day of 1970-01-01; milliseconds are kept.
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "extract(epoch from clock_timestamp())::float8",
}


def now(connection: Connection) -> ColumnElement[float]:
    """An SQL expression for the present, in seconds since 1970."""
    return literal_column(_NOW[connection.dialect.name], Float)
