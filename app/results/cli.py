"""The ``results`` command."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
from celery import Celery
from sqlalchemy import Engine

from app.commands import (
    FarmGroup,
    FiniteFloat,
    WholeNumber,
    columns,
    handle_errors,
    json_option,
    run_option,
    say,
    settings_from,
    state_dir_option,
    table,
)
from app.database.connection import open_database, open_to_read, reading
from app.database.copying import copy_database
from app.database.result_rows import failed_pairs
from app.database.run_rows import find_run
from app.database.source_rows import last_account
from app.errors import printable
from app.queue.celery_app import make_app
from app.queue.client import BROKER_AWAY
from app.results.export import FORMS, describe_export, export
from app.results.exposition import serve_status
from app.results.judgement import check_command
from app.results.report_folder import ReportOptions, describe_report, write_report
from app.results.screen import watch as watch_farm
from app.results.status import Status, all_statuses, status, worker_statuses


@click.group(cls=FarmGroup)
def main() -> None:
    """Look at a run's results, and write them out.

    Example: results export --out stage2_generated_results.json
    """


@main.command("export")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="File to write; it appears when it is complete. - is the standard output.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(list(FORMS)),
    show_default="by the file's ending, else json",
    help="Format of the file.",
)
@click.option(
    "--details",
    is_flag=True,
    help="Add to each description its finish reason, its number of tokens, any reasoning and, where it was asked "
    "(--verify), the probability that its relation holds.",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Exit with status 1 if any pair is pending or failed, or a description never came to an answer.",
)
@run_option
@state_dir_option
@handle_errors
def export_command(
    out: Path, form: str | None, details: bool, strict: bool, run_name: str | None, state_dir: Path | None
) -> None:
    """Write the final JSON (or JSON Lines, or Parquet) in the order of the inputs.

    Example: results export --out stage2_generated_results.json --strict
    """
    settings = settings_from(state_dir=state_dir)
    done = export(open_to_read(settings), out, run_name=run_name, form=form, details=details)
    say(describe_export(done), err=True)
    if strict and done.lacks:
        raise SystemExit(1)


@main.command("report")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to write; a report that is there is replaced.",
)
@click.option(
    "--limit", default=10_000, show_default=True, type=WholeNumber(min=1), help="Pairs to show at most, the first."
)
@click.option(
    "--picture-size",
    default=480,
    show_default=True,
    type=WholeNumber(min=16, max=4096),
    help="Longer side of a picture, in pixels.",
)
@run_option
@state_dir_option
@handle_errors
def report_command(out: Path, limit: int, picture_size: int, run_name: str | None, state_dir: Path | None) -> None:
    """Write a page that shows the pairs with their boxes: a folder that a browser opens without a server.

    Images are looked for where the producer saw them, or under FARM_IMAGE_ROOT and FARM_IMAGE_PREFIXES.

    Example: results report --out report
    """
    settings = settings_from(state_dir=state_dir)
    done = write_report(
        open_to_read(settings),
        out,
        ReportOptions(run_name, limit, picture_size, settings.image_root, settings.prefixes),
    )
    for line in describe_report(done):
        say(line, err=True)


@main.command("status")
@click.option(
    "--watch",
    type=FiniteFloat(min=0.1),
    is_flag=False,
    flag_value=2.0,
    metavar="[SECONDS]",
    show_default="report once; 2 where only --watch is said",
    help="Show runs and workers live, looked at so often, until no pair is pending; without a terminal one line a run.",
)
@click.option(
    "--serve",
    type=click.IntRange(min=1, max=65535),
    metavar="PORT",
    show_default="report once",
    help="TCP port at which Prometheus is told of every run and worker, on FARM_METRICS_HOST, until Ctrl-C.",
)
@json_option
@run_option
@state_dir_option
@handle_errors
def status_command(
    watch: float | None, serve: int | None, as_json: bool, run_name: str | None, state_dir: Path | None
) -> None:
    """Show how many pairs are done, failed, claimed and pending, with the rate and the time left.

    Example: results status --watch 10
    """
    settings = settings_from(state_dir=state_dir)
    database = open_to_read(settings)
    if serve is not None:
        if watch is not None or as_json or run_name is not None:
            raise click.UsageError("--serve tells of all runs, and goes with no other option of this command")
        app, shards = make_app(settings), settings.queue_shards
        look = lambda: (_look_at_all(app, shards, database), worker_statuses(database))  # noqa: E731
        serve_status(look, settings.metrics_host, serve)
        return
    if watch is not None and not as_json:
        app, shards = make_app(settings), settings.queue_shards
        watch_farm(lambda: (_looks(app, shards, database, run_name), worker_statuses(database)), watch)
        return
    while True:
        now = _look(make_app(settings), settings.queue_shards, database, run_name)
        say(json.dumps(now.as_dict()) if as_json else _as_table(now))
        if watch is None or not now.pending:
            return
        time.sleep(watch)


@main.command("runs")
@json_option
@state_dir_option
@handle_errors
def runs_command(as_json: bool, state_dir: Path | None) -> None:
    """List the runs: state, model, pairs by outcome, rate, age.

    Example: results runs
    """
    settings = settings_from(state_dir=state_dir)
    found = _look_at_all(make_app(settings), settings.queue_shards, open_to_read(settings))
    if as_json:
        for each in found:
            say(json.dumps(each.as_dict()))
        return
    heads = ("RUN", "STATE", "PRIORITY", "DONE", "FAILED", "PENDING", "PAIRS/S", "AGE", "WORKERS", "MODEL")
    rows = [
        (each.run, each.state, each.priority, each.done, each.failed, each.pending, f"{each.rate:g}", _age(each.age),
         len(each.workers), each.model)
        for each in found
    ]  # fmt: skip
    say(columns([heads, *rows]))


@main.command("copy")
@click.option("--to", "target", required=True, help="URL of an empty database: postgresql://… or sqlite:///PATH.")
@state_dir_option
@handle_errors
def copy_command(target: str, state_dir: Path | None) -> None:
    """Copy all runs into another, empty database, such as from SQLite to PostgreSQL. Stop the farm before.

    Example: results copy --to postgresql://farm@db-host/farm
    """
    source = open_to_read(settings_from(state_dir=state_dir))
    copied = copy_database(source, open_database(settings_from(state_dir=state_dir, database_url=target)))
    say("copied " + ", ".join(f"{count} {table}" for table, count in copied.items() if count))


@main.command("failures")
@click.option("--limit", default=50, show_default=True, type=WholeNumber(min=1), help="Failed pairs to list at most.")
@json_option
@run_option
@state_dir_option
@handle_errors
def failures_command(limit: int, as_json: bool, run_name: str | None, state_dir: Path | None) -> None:
    """List the pairs that failed, with the reason. `producer retry` requeues them.

    Example: results failures --json
    """
    with reading(open_to_read(settings_from(state_dir=state_dir))) as connection:
        rows = failed_pairs(connection, find_run(connection, run_name), limit)
    for row in rows:
        if as_json:
            say(json.dumps(row))
        else:
            names = ("image_id", "subject", "object", "reason", "detail")
            image, subject, object_, reason, detail = (printable(str(row[name])) for name in names)
            say(f"image {image} ({subject}, {object_}): {reason}: {detail}")


@main.command("drops")
@json_option
@run_option
@state_dir_option
@handle_errors
def drops_command(as_json: bool, run_name: str | None, state_dir: Path | None) -> None:
    """Show what the last enqueue of a run dropped: counts by reason, and examples by their place in the files.

    Example: results drops
    """
    with reading(open_to_read(settings_from(state_dir=state_dir))) as connection:
        account = last_account(connection, find_run(connection, run_name))
    if as_json:
        say(json.dumps(account))
        return
    for unit in ("pairs", "candidates", "images"):
        for reason, count in account.get(unit, {}).items():
            say(f"{count} {unit}: {reason}")
            for example in account["examples"].get(reason, []):
                say(f"    {example}")


main.add_command(check_command)


def _look(app: Celery, shards: int, database: Engine, run_name: str | None) -> Status:
    try:
        return status(database, app, shards, run_name)
    except BROKER_AWAY:
        return status(database, None, shards, run_name)


def _looks(app: Celery, shards: int, database: Engine, run_name: str | None) -> list[Status]:
    return _look_at_all(app, shards, database) if run_name is None else [_look(app, shards, database, run_name)]


def _look_at_all(app: Celery, shards: int, database: Engine) -> list[Status]:
    try:
        return all_statuses(database, app, shards)
    except BROKER_AWAY:
        return all_statuses(database, None, shards)


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _as_table(now: Status) -> str:
    rows: list[tuple[str, object]] = [
        (name, ", ".join(value) or "none" if isinstance(value, list) else value)
        for name, value in now.as_dict().items()
        if not isinstance(value, dict)
    ]
    rows += [(f"failed: {reason}", count) for reason, count in now.failures.items()]
    rows += [(f"dropped: {reason}", count) for reason, count in now.dropped.items()]
    return table(rows)
