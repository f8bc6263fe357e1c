"""A filled database of the version before: what is done stays done, and the same inputs change nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.config import Config
from sqlalchemy import Engine, MetaData, text

from alembic import command
from app.database.connection import open_database, reading
from app.database.revision import migrate, migrations
from app.database.tally_rows import counts_of
from app.settings import load_settings
from producer.run_request import Inputs
from tests.conftest import MakeSettings
from tests.support.desk import Desk, change
from tests.support.runs import write_inputs

_NEW = {"payload": ("frame", "frame_size", "image_stamp"), "descriptions": ("key", "predicate", "reused")}
"""Names in JSON columns that the version before did not know."""


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    """Two images of three pairs; the second image cannot be decoded."""
    made = write_inputs(tmp_path / "in", images=2, pairs=3)
    image = made.image_root / "1.png"
    image.write_bytes(image.read_bytes()[:-40])
    return made


@pytest.fixture
def before(tmp_path: Path, inputs: Inputs) -> Desk:
    """A run of this version: two pairs described, one failed, three pending, one of them claimed."""
    folder = tmp_path / "before"
    desk = Desk(open_database(load_settings(state_dir=folder)), folder)
    desk.enqueue(inputs)
    desk.describe(most=4)
    assert desk.standing()[:3] in ((6, 1, 3), (6, 3, 1))
    return desk


@pytest.fixture
def migrated(database_url: str, make_settings: MakeSettings, before: Desk, tmp_path: Path) -> Iterator[Desk]:
    """The same as the version before would have stored it, migrated."""
    engine = open_database(make_settings(database_url=database_url), migrate=False)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":  # whose databases are copies of one with the newest schema
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
    with engine.connect() as connection:
        config = Config()
        config.set_main_option("script_location", str(migrations()))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    fill(engine, before.database)
    assert migrate(engine)[0] == "0001"
    engine.dispose()
    desk = Desk(open_database(make_settings(database_url=database_url)), tmp_path / "migrated")
    yield desk
    desk.database.dispose()


def fill(engine: Engine, source: Engine) -> None:
    """Copy into a database of the version before what it has columns for."""
    tables = MetaData()
    tables.reflect(engine)
    with source.connect() as old, engine.begin() as new:
        for table in tables.sorted_tables:
            if table.name == "alembic_version":
                continue
            names = ", ".join(column.name for column in table.columns)
            rows = [dict(row) for row in old.execute(text(f"SELECT {names} FROM {table.name}")).mappings()]
            if rows:
                new.execute(table.insert(), [_as_before(row) for row in rows])
        if engine.dialect.name == "postgresql":
            for name in ("runs", "enqueues", "pairs"):
                new.execute(
                    text(f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), (SELECT max(id) FROM {name}))")
                )


def _as_before(row: dict[str, Any]) -> dict[str, Any]:
    for column, names in _NEW.items():
        if row.get(column):
            value = json.loads(row[column])
            for each in value if isinstance(value, list) else [value]:
                for name in names:
                    each.pop(name, None)
            row[column] = json.dumps(value)
    return row


def results(desk: Desk) -> list[dict[str, Any]]:
    """What is exported."""
    found: list[dict[str, Any]] = desk.published()["results"]
    return found


def test_what_was_done_and_failed_stays_so_and_is_counted(before: Desk, migrated: Desk) -> None:
    assert migrated.standing() == before.standing()
    assert results(migrated) == results(before)
    with reading(before.database) as old, reading(migrated.database) as new:
        assert counts_of(new, migrated.run()) == counts_of(old, before.run())


def test_the_same_inputs_enqueued_again_change_nothing_and_the_rest_is_described(
    migrated: Desk, inputs: Inputs
) -> None:
    counted, done = migrated.standing(), results(migrated)
    again = migrated.enqueue(inputs)
    assert (again.stored.unchanged, again.stored.changed, again.stored.to_check, again.stored.removed) == (6, 0, 0, 0)
    assert (migrated.standing(), results(migrated)) == (counted, done)
    left = counted.expected - counted.done - counted.failed
    assert again.open == left
    migrated.describe()
    assert migrated.standing() == (6, 3, 3, 0)
    assert migrated.enqueue(inputs).open == 0


def test_what_was_pending_is_described_without_being_enqueued_again(migrated: Desk) -> None:
    migrated.describe()
    assert migrated.standing() == (6, 3, 3, 0)


def test_changed_inputs_are_noticed_after_a_migration(migrated: Desk, inputs: Inputs) -> None:
    migrated.enqueue(inputs)
    change(inputs.stage1_files[0], lambda document: document["per_image_top100_candidates"]["1"].__delitem__(slice(2)))
    removed = migrated.enqueue(inputs, update=True)
    assert removed.stored.removed == 1
    assert migrated.standing().expected == 5
    migrated.describe()
    assert migrated.standing()[:3] == (5, 2, 3)
