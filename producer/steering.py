"""The commands that steer runs: pause, resume, cancel, delete, set their priority, redo, stop."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Engine

from app.commands import (
    FarmCommand,
    FiniteFloat,
    WholeNumber,
    handle_errors,
    json_option,
    run_option,
    say,
    settings_from,
    state_dir_option,
)
from app.database.connection import open_database, reading
from app.database.pair_rows import done_pairs, redo
from app.database.records import ACTIVE, CANCELLED, PAUSED, Run
from app.database.run_rows import all_runs, delete_run, find_run, hold_run, set_priority, set_state
from app.database.tally_rows import claimed
from app.pair import Pair
from app.queue.celery_app import ensure_broker, make_app
from app.queue.client import BROKER_AWAY
from app.queue.keys import run_lists
from app.queue.publisher import Broker
from app.settings import Settings
from producer.enqueue import publish
from producer.progress import Progress

_LOOK_S = 0.5
_SAY_EVERY_S = 5.0

run_argument = click.argument("run_name", metavar="RUN")


@click.command("pause", cls=FarmCommand)
@run_argument
@state_dir_option
@handle_errors
def pause_command(run_name: str, state_dir: Path | None) -> None:
    """Let workers take no more of a run's pairs; those in flight are finished. `producer resume` goes on.

    Example: producer pause default
    """
    _steer(settings_from(state_dir=state_dir), run_name, PAUSED)


@click.command("resume", cls=FarmCommand)
@run_argument
@state_dir_option
@handle_errors
def resume_command(run_name: str, state_dir: Path | None) -> None:
    """Go on with a run that was paused or cancelled.

    Example: producer resume default
    """
    _steer(settings_from(state_dir=state_dir), run_name, ACTIVE)


@click.command("cancel", cls=FarmCommand)
@run_argument
@state_dir_option
@handle_errors
def cancel_command(run_name: str, state_dir: Path | None) -> None:
    """End a run where it is: its queue is emptied, its pairs in flight are let go, its results stay.

    Example: producer cancel default
    """
    settings = settings_from(state_dir=state_dir)
    _empty_queue(settings, _steer(settings, run_name, CANCELLED))


@click.command("priority", cls=FarmCommand, context_settings={"ignore_unknown_options": True})  # -1 is no option
@run_argument
@click.argument("priority", type=WholeNumber())
@state_dir_option
@handle_errors
def priority_command(run_name: str, priority: int, state_dir: Path | None) -> None:
    """Serve a run before those of a lower PRIORITY (an integer, 0 unless set), or after those of a higher one.

    Example: producer priority small-run 10
    """
    database = open_database(settings_from(state_dir=state_dir))
    with database.begin() as connection:
        set_priority(connection, find_run(connection, run_name), priority)
    say(f"run {run_name} has priority {priority}")


@click.command("delete", cls=FarmCommand)
@run_argument
@click.option("--yes", is_flag=True, help="Delete without asking for confirmation.")
@state_dir_option
@handle_errors
def delete_command(run_name: str, yes: bool, state_dir: Path | None) -> None:
    """Delete a run with its pairs, results and failures. Other runs that reused its descriptions keep them.

    Example: producer delete old-run --yes
    """
    settings = settings_from(state_dir=state_dir)
    database = open_database(settings)
    with reading(database) as connection:
        run = find_run(connection, run_name)
    if not yes:
        click.confirm(f"Delete run {run_name} with all its results?", abort=True)
    with database.begin() as connection:
        delete_run(connection, run)
    _empty_queue(settings, run)
    say(f"run {run_name} is deleted")


@click.command("stop", cls=FarmCommand)
@click.option(
    "--timeout", default=600.0, show_default=True, type=FiniteFloat(min=0), help="Seconds to wait for pairs in flight."
)
@state_dir_option
@handle_errors
def stop_command(timeout: float, state_dir: Path | None) -> None:
    """Drain the farm before maintenance: pause every active run and wait until no pair is in flight.

    Example: producer stop --timeout 120
    """
    database = open_database(settings_from(state_dir=state_dir))
    with database.begin() as connection:
        runs = [run for run in all_runs(connection) if run.state == ACTIVE]
        for run in runs:
            set_state(connection, run, PAUSED)
    say("paused: " + (", ".join(run.name for run in runs) or "no run was active"))
    _wait_for_none_in_flight(database, timeout)
    say("no pair is in flight; `producer resume RUN` goes on")


@click.command("redo", cls=FarmCommand)
@click.option(
    "--image",
    "images",
    multiple=True,
    show_default="all images",
    help="Image id whose pairs are meant; may be given several times.",
)
@click.option(
    "--pair",
    "pair",
    nargs=2,
    metavar="SUBJECT OBJECT",
    show_default="all pairs",
    help="Two class names, or two object ids, whose pairs are meant.",
)
@click.option(
    "--predicate",
    "predicates",
    multiple=True,
    show_default="all predicates",
    help="Predicate whose descriptions are meant; may be given several times.",
)
@click.option(
    "--where-finish",
    type=click.Choice(["length", "stop"]),
    show_default="either",
    help="Finish reason of the descriptions that are meant: length is cut off at the limit of tokens.",
)
@click.option(
    "--max-new-tokens",
    type=WholeNumber(min=1),
    show_default="the run's own",
    help="Longest description, in tokens, of those that are described again.",
)
@json_option
@run_option
@state_dir_option
@handle_errors
def redo_command(
    images: tuple[str, ...],
    pair: tuple[str, str] | None,
    predicates: tuple[str, ...],
    where_finish: str | None,
    max_new_tokens: int | None,
    as_json: bool,
    run_name: str | None,
    state_dir: Path | None,
) -> None:
    """Describe something once more, with another draw of the sampling; all else is kept.

    Example: producer redo --where-finish length --max-new-tokens 1024
    """
    if not (images or pair or predicates or where_finish):
        raise click.UsageError("say what to redo: --image, --pair, --predicate or --where-finish")
    settings = settings_from(state_dir=state_dir)
    database = open_database(settings)

    def chosen(candidate: Pair, descriptions: list[dict[str, Any]]) -> Iterable[str]:
        if pair and pair not in ((candidate.subject, candidate.object), (candidate.subject_id, candidate.object_id)):
            return
        for each in descriptions:
            fits = not predicates or each.get("predicate") in predicates
            if fits and where_finish in (None, each["finish_reason"]):
                yield each.get("predicate") or ""

    with database.begin() as connection:
        run = hold_run(connection, run_name)
        rows = list(done_pairs(connection, run, images))
        number, texts = redo(connection, run, rows, chosen, max_new_tokens)
    if number:
        ensure_broker(settings)
        publish(database, make_app(settings), run, settings.queue_shards, Progress(), total=number)
    found = {"run": run.name, "pairs": number, "descriptions": texts}
    say(json.dumps(found) if as_json else f"{texts} descriptions of {number} pairs are generated again")
    if not number:
        raise SystemExit(1)


COMMANDS = (
    pause_command, resume_command, cancel_command, priority_command, delete_command, stop_command, redo_command,
)  # fmt: skip


def _steer(settings: Settings, run_name: str, state: str) -> Run:
    with open_database(settings).begin() as connection:
        run = hold_run(connection, run_name)
        set_state(connection, run, state)
    say(f"run {run_name} is {state}" + (" (it was before)" if run.state == state else ""))
    return run


def _empty_queue(settings: Settings, run: Run) -> None:
    """Delete what Redis holds of the run; workers do so too, where it does not answer now."""
    try:
        broker = Broker(make_app(settings))
        broker.drop(run_lists(run.model_key, run.uuid, settings.queue_shards))
        broker.close()
    except BROKER_AWAY:
        say("note: the broker does not answer; workers drop the run's messages as they meet them", err=True)


def _wait_for_none_in_flight(database: Engine, timeout: float) -> None:
    deadline, said = time.monotonic() + timeout, float("-inf")
    while True:
        with reading(database) as connection:
            number = sum(claimed(connection, run) for run in all_runs(connection))
        if not number:
            return
        if time.monotonic() > deadline:
            raise click.ClickException(f"{number} pairs are still in flight after {timeout:.0f} s")
        if time.monotonic() - said > _SAY_EVERY_S:
            said = time.monotonic()
            say(f"waiting for {number} pairs in flight", err=True)
        time.sleep(_LOOK_S)
