"""A desk for each test, on each kind of database in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from app.database.connection import open_database
from app.settings import load_settings
from producer.run_request import Inputs
from tests.support.desk import Desk

Fresh = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def desk(database: Engine, tmp_path: Path) -> Desk:
    """Files are enqueued into it and described by an engine that tells what it saw."""
    return Desk(database, tmp_path / "desk")


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fresh]:
    """What a new run over some inputs, one after the other, publishes, in a database of its own."""
    folder = tmp_path_factory.mktemp("fresh")
    database = open_database(load_settings(state_dir=folder))
    desk, numbers = Desk(database, folder), count()

    def published(*inputs: Inputs, **settings: Any) -> list[dict[str, Any]]:
        name = f"run {next(numbers)}"
        for each in inputs:
            desk.enqueue(each, name, reuse=False, update=True, **settings)
        desk.describe(name)
        results: list[dict[str, Any]] = desk.published(name)["results"]
        return results

    yield published
    database.dispose()
