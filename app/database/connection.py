"""Engines for SQLite and PostgreSQL, and their transactions."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, OperationalError

from app.database import revision
from app.database.private_files import make_private_file, make_private_folder
from app.database.revision import check_schema
from app.errors import SchemaPending, SettingsError
from app.settings import Settings

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

_SQLITE = b"SQLite format 3\0"  # https://www.sqlite.org/fileformat2.html
_PREPARE = "prepare_threshold"
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

Value = TypeVar("Value")


def database_url(settings: Settings) -> URL:
    """The URL with its driver: DATABASE_URL, else the SQLite file of the state folder."""
    if settings.database_url is None:
        return URL.create("sqlite", database=str(settings.sqlite_path))
    try:
        url = make_url(settings.database_url.get_secret_value())
    except (ArgumentError, ValueError):  # of which the second may quote a piece of the password
        raise SettingsError("DATABASE_URL is not a database URL (postgresql://… or sqlite:///…)") from None
    if url.drivername in ("postgres", "postgresql", "postgresql+psycopg"):
        return _checked_postgresql(url.set(drivername="postgresql+psycopg"))
    if url.drivername != "sqlite":
        raise SettingsError(f"DATABASE_URL: {url.drivername} is not one of sqlite, postgresql")
    if url.drivername == "sqlite" and url.database in (None, "", ":memory:"):
        raise SettingsError("DATABASE_URL: sqlite:///PATH is needed; a database in memory is each process's own")
    _refuse_other_file(Path(str(url.database)))
    return url


def _refuse_other_file(path: Path) -> None:
    """Raise SettingsError where something else than an SQLite file is: no waiting would mend that."""
    if path.is_dir():
        raise SettingsError(f"DATABASE_URL: {path} is a folder; sqlite:///PATH names a file")
    with suppress(OSError), path.open("rb") as file:
        if (start := file.read(len(_SQLITE))) and start != _SQLITE:
            raise SettingsError(f"DATABASE_URL: {path} is a file, and no SQLite database")


def _checked_postgresql(url: URL) -> URL:
    """Raises SettingsError for an option that libpq does not know: the server would not get to see it."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import make_conninfo

    options = {name: value if isinstance(value, str) else value[-1] for name, value in url.query.items()}
    prepare = options.pop(_PREPARE, "5")
    if prepare != "none" and not (prepare.isascii() and prepare.isdecimal()):
        raise SettingsError(f"DATABASE_URL: {_PREPARE} is a number or none, not {prepare!r}")
    try:
        make_conninfo("", **options)
    except ProgrammingError as error:
        raise SettingsError(f"DATABASE_URL: {str(error).strip()}") from None
    if (mode := options.get("sslmode", "prefer")) not in _SSL_MODES:
        raise SettingsError(f"DATABASE_URL: sslmode {mode!r} is not one of {', '.join(_SSL_MODES)}")
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
        make_private_folder(Path(str(url.database)).parent)
        make_private_file(Path(str(url.database)))  # SQLite gives its log the rights of the file
        engine = _open_sqlite(url, pool_size, busy_timeout_s)
    else:
        engine = _open_postgresql(url, pool_size)
    if migrate:
        revision.migrate(engine)
    return engine


def open_migrated(settings: Settings, *, pool_size: int, busy_timeout_s: float) -> Engine:
    """As ``open_database``, for workers: makes neither file nor schema, raises SchemaPending until they are there."""
    _refuse_missing_file(database_url(settings))
    return _checked(open_database(settings, pool_size=pool_size, busy_timeout_s=busy_timeout_s, migrate=False))


def open_to_read(settings: Settings) -> Engine:
    """An engine that cannot write, for commands that only look. Raises SchemaError where the schema is not ours."""
    url = database_url(settings)
    _refuse_missing_file(url)
    if url.get_backend_name() == "sqlite":
        return _checked(_open_sqlite_to_read(url))
    return _checked(_open_postgresql(url, 5).execution_options(postgresql_readonly=True))


def _refuse_missing_file(url: URL) -> None:
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        raise SchemaPending(
            f"there is no database {url.database} yet: `producer enqueue` or `producer migrate` makes it"
        )


def _checked(engine: Engine) -> Engine:
    try:
        with reading(engine) as connection:
            check_schema(connection)
    except BaseException:
        engine.dispose()
        raise
    return engine


def _open_postgresql(url: URL, pool_size: int) -> Engine:
    arguments: dict[str, Any] = dict(_POSTGRES_OPTIONS)
    if prepare := url.query.get(_PREPARE):  # psycopg's own, which is a number or None
        arguments[_PREPARE] = None if prepare == "none" else int(str(prepare))
    engine = create_engine(
        url.difference_update_query([_PREPARE]),
        pool_size=pool_size, max_overflow=pool_size, pool_pre_ping=True, connect_args=arguments,
    )  # fmt: skip

    @event.listens_for(engine, "connect", insert=True)  # before SQLAlchemy asks what it cannot read in SQL_ASCII
    def _check(connection: Any, _record: Any) -> None:
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":  # names in other scripts would be lost, or refused in the middle of a run
            raise SettingsError(
                f"DATABASE_URL: database {connection.info.dbname!r} is encoded in {encoding}, not in UTF8; "
                "make one by `createdb --encoding UTF8 --template template0`"
            )

    return engine


def _open_sqlite(url: URL, pool_size: int, busy_timeout_s: float) -> Engine:
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


def _open_sqlite_to_read(url: URL) -> Engine:
    """A file that is in use is opened read-only, so that even its log is left as it is; one that lies there whole is
    not, for then SQLite would leave an empty log alongside it. Both refuse to write.
    """
    path = Path(str(url.database)).resolve()

    def connect() -> sqlite3.Connection:
        mode = "ro" if path.with_name(f"{path.name}-wal").exists() else "rw"
        connection = sqlite3.connect(
            f"file:{quote(str(path))}?mode={mode}", uri=True, timeout=BUSY_TIMEOUT_S, check_same_thread=False
        )
        connection.isolation_level = None
        connection.execute("PRAGMA query_only=ON")
        return connection

    engine = create_engine(url, creator=connect)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
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
