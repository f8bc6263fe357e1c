"""Runs: found by name, created, compared with what an enqueue asks for, steered and ended by their owner."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, RowMapping, and_, exists, select
from sqlalchemy.exc import NoResultFound

from app.database.dialect import insert, now
from app.database.records import ACTIVE, CANCELLED, Run, RunSettings
from app.database.schema import results, runs
from app.errors import RunError


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


def hold_run(connection: Connection, name: str | None) -> Run:
    """The run of that name, or the only one, which nobody else changes before this transaction ends.

    Raises RunError like ``find_run``.
    """
    run = find_run(connection, name)
    try:
        return _locked(connection, run.name)
    except NoResultFound:  # deleted in between
        return find_run(connection, name)


def all_runs(connection: Connection) -> list[Run]:
    """Every run, the oldest first."""
    return [_as_run(row) for row in connection.execute(select(runs).order_by(runs.c.id)).mappings()]


def runs_of_models(connection: Connection, model_keys: Collection[str]) -> list[Run]:
    """The runs whose pairs go to these models' queues, in the order in which they are served: priority, then age."""
    query = select(runs).where(runs.c.model_key.in_(model_keys)).order_by(runs.c.priority.desc(), runs.c.id)
    return [_as_run(row) for row in connection.execute(query).mappings()]


def runs_by_uuid(connection: Connection, uuids: Collection[str]) -> dict[str, Run]:
    """The runs that messages name; those that are gone are left out."""
    query = select(runs).where(runs.c.uuid.in_(uuids))
    return {row["uuid"]: _as_run(row) for row in connection.execute(query).mappings()}


def find_or_create_run(
    connection: Connection, wanted: Run, *, update: bool = False, priority: int | None = None
) -> Run:
    """The run of ``wanted.name``, made if it is new; two producers at once get the same one.

    A run without any result that was made with other settings is made again with these; its state and priority stay.
    ``update`` lets the top K of a run that has results change. Without ``priority`` the run keeps its own. Raises
    RunError with the differing settings.
    """
    connection.execute(insert(connection, runs).values(_values(connection, wanted)).on_conflict_do_nothing())
    run = _locked(connection, wanted.name)
    if _differences(run, wanted) and not _has_results(connection, run):
        connection.execute(runs.delete().where(runs.c.id == run.id))
        values = _values(connection, wanted) | {"state": run.state, "priority": run.priority}
        connection.execute(runs.insert().values(values))
        run = _locked(connection, wanted.name)
    differing = _differences(run, wanted)
    if differing == ["top_k"] and update:
        differing = []
    if differing:
        _refuse(run, wanted, differing)
    kept = {**run.settings.as_json(), "top_k": wanted.settings.top_k}
    renewed: dict[str, Any] = {"options": wanted.options, "settings": kept}
    if priority is not None:
        renewed["priority"] = priority
    connection.execute(runs.update().where(runs.c.id == run.id).values(renewed))
    return _locked(connection, wanted.name)


def set_state(connection: Connection, run: Run, state: str) -> None:
    """Pause, cancel or resume a run. What it resumes from cancelled is published from its beginning."""
    values: dict[str, Any] = {"state": state}
    if state == ACTIVE and run.state == CANCELLED:
        values["published_upto"] = 0
    connection.execute(runs.update().where(runs.c.id == run.id).values(values))


def set_priority(connection: Connection, run: Run, priority: int) -> None:
    """Runs of a higher priority are served first."""
    connection.execute(runs.update().where(runs.c.id == run.id).values(priority=priority))


def delete_run(connection: Connection, run: Run) -> None:
    """Take a run out of the database with all that belongs to it."""
    connection.execute(runs.delete().where(runs.c.id == run.id))


def bind_model(connection: Connection, run: Run, model_hash: str) -> bool:
    """Say which model, weights and all, describes the run; False if it is another one already."""
    unbound = and_(runs.c.id == run.id, runs.c.model_hash.is_(None))
    connection.execute(runs.update().where(unbound).values(model_hash=model_hash))
    bound = connection.execute(select(runs.c.model_hash).where(runs.c.id == run.id)).scalar_one_or_none()
    return bool(bound == model_hash)


def has_described(connection: Connection, model_hash: str | None, template_hash: str, besides: int) -> bool:
    """Whether another run than ``besides`` of this model and template has results, which may be used again."""
    if model_hash is None:
        return False
    known = exists().where(results.c.run_id == runs.c.id)
    query = select(runs.c.settings).where(runs.c.model_hash == model_hash, runs.c.id != besides, known)
    return any(settings["template_hash"] == template_hash for settings in connection.execute(query).scalars())


def _values(connection: Connection, wanted: Run) -> dict[str, Any]:
    return {
        "uuid": str(uuid.uuid4()),
        "name": wanted.name,
        "settings": wanted.settings.as_json(),
        "template": wanted.template,
        "model_key": wanted.model_key,
        "model": wanted.settings.model,
        "image_root": wanted.image_root,
        "expected": 0,
        "options": wanted.options,
        "created_at": now(connection),
        "priority": wanted.priority,
        "model_hash": wanted.model_hash,
    }


def _locked(connection: Connection, name: str) -> Run:
    # With its key shared: a lock that kept foreign keys out would stop all workers' writes, and deadlock with them.
    query = select(runs).where(runs.c.name == name).with_for_update(key_share=True)
    return _as_run(connection.execute(query).mappings().one())


def _has_results(connection: Connection, run: Run) -> bool:
    return connection.execute(select(results.c.pair_id).where(results.c.run_id == run.id).limit(1)).first() is not None


def _differences(run: Run, wanted: Run) -> list[str]:
    """The settings that differ; a model's name is only a name where both sides know what is in it.

    ``model_hash`` is among them where the weights, or whatever else is not in the configuration, were changed.
    """
    ours, theirs = asdict(run.settings), asdict(wanted.settings)
    differing = [name for name, value in theirs.items() if ours.get(name) != value]
    same_model = run.model_hash is not None and run.model_hash == wanted.model_hash
    if same_model or (run.model_key == wanted.model_key and ours["model_config_hash"] == theirs["model_config_hash"]):
        differing = [name for name in differing if name not in ("model", "model_revision")]
    if not same_model and None not in (run.model_hash, wanted.model_hash):
        differing.append("model_hash")
    return differing


def _refuse(run: Run, wanted: Run, differing: list[str]) -> None:
    ours, theirs = ({**asdict(each.settings), "model_hash": each.model_hash} for each in (run, wanted))
    lines = "\n".join(f"  {name}: {ours.get(name)!r} in the run, {theirs[name]!r} now" for name in differing)
    help_ = "--update takes another --top-k" if differing == ["top_k"] else "Use the same ones"
    raise RunError(f"run {run.name!r} was made with other settings:\n{lines}\n{help_}, or another name by --run")


def _as_run(row: RowMapping) -> Run:
    values = {name: row[name] for name in Run.__dataclass_fields__}
    return Run(**{**values, "settings": RunSettings(**row["settings"])})
