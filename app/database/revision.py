"""Which revision the database's schema is at, and bringing it to ours.

Migrations only expand the schema: workers of the version before, which run on while it is migrated, must find all that
they use. ``producer`` commands and ``workers up`` migrate; ``results`` commands and workers check.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from app.database.private_files import open_private
from app.errors import SchemaError, SchemaPending

_POSTGRES_LOCK = 0x72656C6661726D  # any constant: the advisory lock that migrations take


def migrations() -> Path:
    """The folder of Alembic's migrations: in the package where it is installed, else at the top of the checkout."""
    packed = Path(__file__).resolve().parent / "migrations"
    return packed if packed.is_dir() else Path(__file__).resolve().parents[2] / "alembic"


def revisions() -> list[str]:
    """Those that this version knows, oldest first: the numbers that the migrations' files begin with.

    Read from the names, because Alembic takes half a second to import; a test compares.
    """
    return sorted(path.name.partition("_")[0] for path in (migrations() / "versions").glob("[0-9]*_*.py"))


def check_schema(connection: Connection) -> None:
    """Raise SchemaPending where ``migrate`` has something to do, SchemaError where this version is too old."""
    current = current_revision(connection)
    known = revisions()
    if current is None:
        raise SchemaPending("the database has no schema yet: `producer migrate` makes it")
    if current not in known:
        raise SchemaError(
            f"the database's schema ({current}) is newer than this version of the farm, which knows up to {known[-1]}: "
            "install the newer version"
        )
    if current != known[-1]:
        raise SchemaPending(
            f"the database's schema ({current}) is older than this version needs ({known[-1]}): run `producer migrate`"
        )


def current_revision(connection: Connection) -> str | None:
    """The revision that the database says it is at; None where it says nothing."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def migrate(engine: Engine) -> tuple[str | None, str]:
    """Bring the schema to the newest revision; gives the one before and the one after.

    Several processes may call it at once. Raises SchemaError for a database that is newer, or another program's.
    """
    with one_at_a_time(engine), engine.connect() as connection:
        with connection.begin():
            current = current_revision(connection)
            try:
                check_schema(connection)
            except SchemaPending:
                pass
            else:
                return current, str(current)
            if current is None and inspect(connection).has_table("runs"):
                raise SchemaError("the database holds a table 'runs' that this project did not make")
        _run_alembic(connection)
    return current, revisions()[-1]


@contextmanager
def one_at_a_time(engine: Engine) -> Iterator[None]:
    """Holds the lock of whoever changes the schema."""
    if engine.dialect.name == "sqlite":
        with open_private(Path(f"{engine.url.database}.lock")) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _POSTGRES_LOCK})
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _POSTGRES_LOCK})


def _run_alembic(connection: Connection) -> None:
    from alembic.config import Config

    from alembic import command

    config = Config()
    config.set_main_option("script_location", str(migrations()).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
