"""The schema is what the migrations make, on both databases, whoever migrates first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, inspect, text

from app.database.connection import open_database
from app.database.schema import metadata
from app.errors import SchemaError, SettingsError
from tests.conftest import MakeSettings


def test_the_migrations_make_the_tables_of_the_schema(database: Engine) -> None:
    with database.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "render_as_batch": True})
        assert compare_metadata(context, metadata) == []
        assert set(inspect(connection).get_table_names()) == {*metadata.tables, "alembic_version"}


def test_all_constraints_have_the_names_of_the_schema(database: Engine) -> None:
    looked = inspect(database)
    for table in metadata.tables.values():
        unique = {constraint["name"] for constraint in looked.get_unique_constraints(table.name)}
        wanted = {str(constraint.name) for constraint in table.constraints if "uq_" in str(constraint.name)}
        assert unique == wanted
        assert {key["name"] for key in looked.get_foreign_keys(table.name)} == {
            str(constraint.name) for constraint in table.foreign_key_constraints
        }


def test_several_processes_may_migrate_at_once(tmp_path: object, make_settings: MakeSettings) -> None:
    settings = make_settings(database_url=f"sqlite:///{tmp_path}/new.sqlite")
    with ThreadPoolExecutor(6) as threads:
        engines = list(threads.map(lambda _: open_database(settings), range(6)))
    with engines[0].connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM runs")).scalar_one() == 0


def test_a_database_of_another_program_is_left_alone(tmp_path: object, make_settings: MakeSettings) -> None:
    url = f"sqlite:///{tmp_path}/theirs.sqlite"
    with create_engine(url).begin() as connection:
        connection.execute(text("CREATE TABLE runs (distance INTEGER)"))
    with pytest.raises(SchemaError, match="runs"):
        open_database(make_settings(database_url=url))


@pytest.mark.parametrize("url", ["mysql://host/farm", "no url at all", "postgresql+asyncpg://host/farm"])
def test_an_unknown_database_is_refused_without_its_password(make_settings: MakeSettings, url: str) -> None:
    with pytest.raises(SettingsError, match="DATABASE_URL"):
        open_database(make_settings(database_url=url))
