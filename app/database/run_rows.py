"""Runs: found by name, created, compared with what an enqueue asks for."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, select

from app.database.dialect import insert, now
from app.database.schema import runs
from app.errors import RunError


@dataclass(frozen=True)
class RunSettings:
    """What makes a run's text what it is. Two enqueues of one run must agree on all of it."""

    model: str
    model_revision: str | None
    model_config_hash: str | None  # None where the model's files are not on the producer's host
    style: str
    template_hash: str
    top_k: int
    max_new_tokens: int
    temperature: float
    seed: int
    min_pixels: int | None
    max_pixels: int | None


@dataclass(frozen=True)
class Run:
    """A row of the runs table."""

    id: int
    uuid: str
    name: str
    settings: RunSettings
    template: dict[str, str]
    model_key: str
    image_root: str
    expected: int
    options: dict[str, Any]
    created_at: float


def find_run(connection: Connection, name: str | None) -> Run:
    """The run of that name; without a name the only one. Raises RunError, which lists the names there are."""
    found = connection.execute(select(runs).order_by(runs.c.id)).mappings().all()
    names = ", ".join(row["name"] for row in found) or "none"
    if name is not None:
        found = [row for row in found if row["name"] == name]
        if not found:
            raise RunError(f"there is no run {name!r}; there are: {names}")
    if not found:
        raise RunError("there is no run yet: `producer enqueue` makes one")
    if len(found) > 1:
        raise RunError(f"there are several runs; choose one by --run: {names}")
    return _as_run(found[0])


def runs_of_models(connection: Connection, model_keys: Collection[str]) -> list[Run]:
    """The runs whose pairs go to these models' queues."""
    query = select(runs).where(runs.c.model_key.in_(model_keys)).order_by(runs.c.id)
    return [_as_run(row) for row in connection.execute(query).mappings()]


def run_of_row(row: RowMapping) -> Run:
    """The run out of a row that has it in columns ``run_…`` alongside others."""
    values = {name: row[f"run_{name}"] for name in Run.__dataclass_fields__}
    return Run(**{**values, "settings": RunSettings(**values["settings"])})


def find_or_create_run(connection: Connection, wanted: Run) -> Run:
    """The run of ``wanted.name``, made if it is new; two producers at once get the same one.

    Raises RunError with the differing settings if it exists with others.
    """
    values = {
        "uuid": str(uuid.uuid4()),
        "name": wanted.name,
        "settings": wanted.settings.__dict__,
        "template": wanted.template,
        "model_key": wanted.model_key,
        "model": wanted.settings.model,
        "image_root": wanted.image_root,
        "expected": 0,
        "options": wanted.options,
        "created_at": now(connection),
    }
    connection.execute(insert(connection, runs).values(values).on_conflict_do_nothing())
    found = connection.execute(select(runs).where(runs.c.name == wanted.name).with_for_update()).mappings().one()
    run = _as_run(found)
    _refuse_other_settings(run, wanted.settings)
    updates = {"image_root": wanted.image_root, "options": wanted.options}
    connection.execute(runs.update().where(runs.c.id == run.id).values(updates))
    return run


def _refuse_other_settings(run: Run, wanted: RunSettings) -> None:
    differences = [
        f"  {name}: {getattr(run.settings, name)!r} in the run, {value!r} now"
        for name, value in wanted.__dict__.items()
        if getattr(run.settings, name) != value
    ]
    if differences:
        raise RunError(
            f"run {run.name!r} was made with other settings:\n" + "\n".join(differences) + "\n"
            "Use the same ones, or another name by --run"
        )


def _as_run(row: RowMapping) -> Run:
    values = {name: row[name] for name in Run.__dataclass_fields__}
    return Run(**{**values, "settings": RunSettings(**row["settings"])})
