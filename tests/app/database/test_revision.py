"""Who migrates, who checks, who waits; and what a database of another version is told."""

from __future__ import annotations

import ast
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

from app.database import revision
from app.database.connection import open_database, open_to_read, reading
from app.database.revision import migrate, migrations, revisions
from app.errors import SchemaError, SchemaPending, SettingsError
from app.queue.celery_app import embedded_broker
from app.settings import Settings
from tests.conftest import MakeSettings
from tests.support.commands import Commands
from tests.support.runs import pair, store_run

BIN = Path(sys.executable).parent
RESULTS = [["status"], ["failures"], ["drops"], ["export", "--out", "out.json"]]


@pytest.fixture
def settings(database_url: str, make_settings: MakeSettings) -> Iterator[Settings]:
    made = make_settings(database_url=database_url)
    yield made
    embedded_broker(made).stop()


def run(settings: Settings, *command: str) -> subprocess.CompletedProcess[str]:
    """A command with these settings, in the state folder."""
    return subprocess.run(
        [BIN / command[0], *command[1:]], cwd=settings.state_dir, env=os.environ | settings.environment(),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def set_revision(engine: Engine, number: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :number"), {"number": number})


def test_the_revisions_are_those_that_alembic_finds() -> None:
    config = Config()
    config.set_main_option("script_location", str(migrations()))
    found = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert revisions() == found[::-1]


@pytest.mark.parametrize("path", sorted((migrations() / "versions").glob("*.py")), ids=lambda path: path.stem)
def test_migrations_only_expand(path: Path) -> None:
    [upgrade] = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") == "upgrade"]
    calls = {node.func.attr for node in ast.walk(upgrade) if isinstance(node, ast.Call) and hasattr(node.func, "attr")}
    narrowing = {name for name in calls if name.startswith(("drop_", "rename_", "alter_"))}
    assert not narrowing, "workers of the version before go on: add, and drop what is unused a version later"


def test_a_migration_is_told_with_what_was_there_before(make_settings: MakeSettings) -> None:
    engine = open_database(make_settings(), migrate=False)
    assert migrate(engine) == (None, revisions()[-1])
    assert migrate(engine) == (revisions()[-1],) * 2
    engine.dispose()


@pytest.mark.parametrize(
    "command",
    [
        ["producer", "migrate"],
        ["producer", "retry"],
        ["workers", "up", "--num-gpus", "0"],
        *(["results", *arguments] for arguments in RESULTS),
        ["celery", "-A", "workers", "worker"],
    ],
    ids=" ".join,
)
def test_a_newer_database_is_refused_in_one_line(make_settings: MakeSettings, command: list[str]) -> None:
    settings = make_settings()
    engine = open_database(settings)
    set_revision(engine, "9999")
    engine.dispose()
    try:
        done = run(settings, *command)
    finally:
        embedded_broker(settings).stop()
    said = [line for line in done.stderr.splitlines() if "newer than this version" in line]
    assert done.returncode == (78 if command[0] == "celery" else 1)
    assert len(said) == 1
    assert "(9999)" in said[0]
    assert "Traceback" not in done.stderr
    assert command[0] == "celery" or done.stderr.count("\n") <= 2  # workers up says what its slots are before


@pytest.mark.parametrize("arguments", RESULTS, ids=" ".join)
def test_results_neither_make_nor_migrate_a_database(make_settings: MakeSettings, arguments: list[str]) -> None:
    settings = make_settings()
    done = run(settings, "results", *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "there is no database" in done.stderr
    assert list(settings.state_dir.iterdir()) == []


def test_a_database_without_or_with_an_older_schema_is_told_to_be_migrated(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_database(settings)
    newest = revisions()[-1]
    monkeypatch.setattr(revision, "revisions", lambda: [newest, "9998"])
    older = rf"\({newest}\) is older than this version needs \(9998\).*producer migrate"
    with pytest.raises(SchemaPending, match=older):
        open_to_read(settings)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
    with pytest.raises(SchemaPending, match="no schema yet"):
        open_to_read(settings)
    with pytest.raises(SchemaError, match="'runs' that this project did not make"):
        migrate(engine)
    engine.dispose()


def state_of(folder: Path) -> dict[str, str]:
    """Every file in a folder but SQLite's shared memory, in which readers note what they read."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file() and not path.name.endswith("-shm")
    }


@pytest.mark.parametrize("in_use", [False, True])
def test_results_leave_the_database_as_it_is(make_settings: MakeSettings, in_use: bool) -> None:
    settings = make_settings()
    engine = open_database(settings)
    store_run(engine, [pair(1)])
    if not in_use:
        engine.dispose()
    before = state_of(settings.state_dir)
    assert ("farm.sqlite-wal" in before) == in_use
    for arguments in RESULTS[:3]:
        assert run(settings, "results", *arguments).returncode == 0
    assert state_of(settings.state_dir) == before
    engine.dispose()


def test_what_is_opened_to_read_cannot_write(settings: Settings) -> None:
    open_database(settings).dispose()
    engine = open_to_read(settings)
    with pytest.raises(Exception, match=r"readonly|read-only"), engine.begin() as connection:
        connection.execute(text("DELETE FROM runs"))
    with reading(engine) as connection:
        connection.execute(text("SELECT count(*) FROM runs"))
    engine.dispose()


def test_a_database_in_memory_is_refused(make_settings: MakeSettings) -> None:
    for url in ("sqlite://", "sqlite:///:memory:"):
        with pytest.raises(SettingsError, match="DATABASE_URL: sqlite:///PATH is needed"):
            open_database(make_settings(database_url=url))


def test_a_worker_waits_for_the_schema_and_says_so(short_folder: Path) -> None:
    commands = Commands(short_folder)
    state = short_folder.resolve() / "state"
    try:
        with commands.worker() as worker:
            assert worker.says("waiting for the database's schema", within=30), worker.said
            assert not (state / "farm.sqlite").exists()
            assert commands.command("producer", "migrate").returncode == 0
            assert worker.says(" ready."), worker.said
    finally:
        commands.command("producer", "broker", "stop")
