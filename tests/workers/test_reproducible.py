"""The same run gives the same texts whatever batch, engine or order they came from (float32, temperature 0.1)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select

from app.database.connection import open_database, reading
from app.database.run_rows import find_run
from app.database.schema import pairs, results
from app.database.tally_rows import counts_of
from app.model_identity import identify_model
from producer.enqueue import prepare
from producer.progress import Progress
from tests.conftest import MakeSettings
from tests.support.runs import request_for, write_inputs
from workers.identity import WorkerIdentity
from workers.pair_runner import PairRunner
from workers.process import load


@pytest.fixture
def sqlite(make_settings: MakeSettings) -> Engine:
    return open_database(make_settings())


def texts(database: Engine, name: str) -> list[list[str]]:
    """A run's texts in the order of the inputs."""
    with reading(database) as connection:
        query = select(results.c.descriptions).join(pairs, pairs.c.id == results.c.pair_id)
        query = query.where(pairs.c.run_id == run_id(database, name)).order_by(pairs.c.position)
        return [[one["text"] for one in row] for row in connection.execute(query).scalars()]


def run_id(database: Engine, name: str) -> int:
    with reading(database) as connection:
        return find_run(connection, name).id


def describe(database: Engine, settings: Any, inputs: Any, name: str, *, backwards: bool) -> list[list[str]]:
    """Work a run off in this process, as one worker with these settings would."""
    wanted = replace(request_for(name, model=settings.model, max_new_tokens=8), options={"reuse": False})
    prepared = prepare(database, wanted, inputs, Progress(quiet=True))
    engine = load(settings, identify_model(settings.model))
    model = identify_model(settings.model)
    worker = WorkerIdentity("worker of " + name, tuple(model.keys_served), model.hash or model.key)
    runner = PairRunner(settings, database, engine, worker)
    with reading(database) as connection:
        ids = list(connection.execute(select(pairs.c.id).where(pairs.c.run_id == prepared.run.id)).scalars())
    try:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda at: runner.run(prepared.run.uuid, at), ids[::-1] if backwards else ids))
    finally:
        runner.end()
        runner.close()
    with reading(database) as connection:
        counts = counts_of(connection, find_run(connection, name))
    assert (counts.texts, counts.texts_reused) == (12, 0), "a copied text would show nothing"
    return texts(database, name)


def test_texts_do_not_depend_on_batch_order_or_engine(
    sqlite: Engine, make_settings: MakeSettings, tiny_model: Path, tmp_path: Path
) -> None:
    inputs = write_inputs(tmp_path / "in", images=2, pairs=3)

    def run(name: str, *, backwards: bool = False, **settings: Any) -> list[list[str]]:
        ours = make_settings(model=str(tiny_model), device="cpu", dtype="float32", threads=1, **settings)
        return describe(sqlite, ours, inputs, name, backwards=backwards)

    one_by_one = run("one", batch_size=1)
    assert len({text for pair in one_by_one for text in pair}) > 6
    assert run("eight", batch_size=8, backwards=True) == one_by_one
    assert run("transformers", batch_size=3, engine="transformers") == one_by_one
