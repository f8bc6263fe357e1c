"""Engines for SQLite and PostgreSQL, their transactions, and the schema's upgrade by Alembic."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, OperationalError

from app.errors import SettingsError
from app.settings import Settings

_MIGRATIONS = Path(__file__).resolve().parents[2] / "alembic"
_PAUSE_S = 0.5
BUSY_TIMEOUT_S = 30.0
# A server whose host is gone without a word is noticed in about 20 s, not in the two hours of TCP's own default.
_POSTGRES_OPTIONS = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
_POSTGRES_LOCK = 0x72656C6661726D  # any constant: the advisory lock that migrations take


Value = TypeVar("Value")


def database_url(settings: Settings) -> URL:
    """The URL with its driver: DATABASE_URL, else the SQLite file of the state folder."""
    if settings.database_url is None:
        return URL.create("sqlite", database=str(settings.sqlite_path))
    try:
        url = make_url(settings.database_url.get_secret_value())
    except (ArgumentError, ValueError):  # of which the second may quote a piece of the password
        raise SettingsError("DATABASE_URL is not a database URL (postgresql://… or sqlite:///…)") from None
    if url.drivername in ("postgres", "postgresql"):
        return url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "postgresql+psycopg"):
        raise SettingsError(f"DATABASE_URL: {url.drivername} is not one of sqlite, postgresql")
    return url


def open_database(
    settings: Settings, *, pool_size: int = 5, busy_timeout_s: float = BUSY_TIMEOUT_S, migrate: bool = True
) -> Engine:
    """An engine whose every transaction may write; the schema is brought up to date first, unless told not to.

    SQLite (https://www.sqlite.org/wal.html): WAL, and ``BEGIN IMMEDIATE``, because a deferred transaction that reads
    and then writes fails with "database is locked" whatever the busy timeout.
    """
    url = database_url(settings)
    if url.get_backend_name() == "sqlite":
        engine = _open_sqlite(url, pool_size, busy_timeout_s)
    else:
        engine = create_engine(
            url,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_pre_ping=True,
            connect_args=_POSTGRES_OPTIONS,
        )
    if migrate:
        upgrade(engine)
    return engine


def _open_sqlite(url: URL, pool_size: int, busy_timeout_s: float) -> Engine:
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    # check_same_thread: SQLAlchemy's pool hands a connection to one thread at a time.
    arguments = {"timeout": busy_timeout_s, "check_same_thread": False}
    engine = create_engine(url, pool_size=pool_size, max_overflow=pool_size, connect_args=arguments)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions are started below, not by the driver
        cursor = connection.cursor()
        mode = cursor.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise SettingsError(
                f"SQLite file {url.database}: WAL is not possible there (it says {mode!r}; a network file system?). "
                "Use a local folder, or PostgreSQL by DATABASE_URL"
            )
        cursor.execute(f"PRAGMA busy_timeout={int(busy_timeout_s * 1000)}")
        cursor.execute("PRAGMA synchronous=FULL")  # NORMAL may lose the last commits at a power cut
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        readonly = connection.get_execution_options().get("readonly", False)
        connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")

    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One consistent snapshot for as long as the block lasts; never blocks writers."""
    options: dict[str, Any] = {"readonly": True}
    if engine.dialect.name == "postgresql":
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with engine.connect().execution_options(**options) as connection, connection.begin():
        yield connection


def patiently(action: Callable[[], Value], limit_s: float) -> Value:
    """The action's value; while the database is away, it is tried again for as long as ``limit_s``."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            return action()
        except OperationalError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_PAUSE_S)


def upgrade(engine: Engine) -> None:
    """Bring the schema to the newest migration; several processes may call it at once."""
    with one_at_a_time(engine), engine.connect() as connection:
        from alembic.config import Config
        from alembic.migration import MigrationContext
        from alembic.script import ScriptDirectory

        from alembic import command

        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        head = ScriptDirectory.from_config(config).get_current_head()
        with connection.begin():
            current = MigrationContext.configure(connection).get_current_revision()
        if current == head:
            return
        if current is None and inspect(connection).has_table("runs"):
            raise SettingsError("the database holds a table 'runs' that this project did not make")
        connection.rollback()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextmanager
def one_at_a_time(engine: Engine) -> Iterator[None]:
    """Holds the lock of whoever changes the schema."""
    if engine.dialect.name == "sqlite":
        with open(f"{engine.url.database}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _POSTGRES_LOCK})
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _POSTGRES_LOCK})
