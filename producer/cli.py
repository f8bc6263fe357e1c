"""The ``producer`` command."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from app.commands import (
    FarmGroup,
    WholeNumber,
    handle_errors,
    json_option,
    log_options,
    run_option,
    say,
    settings_from,
    state_dir_option,
    worker_options,
)
from app.database.connection import open_database
from app.database.records import ACTIVE
from app.database.result_rows import forget_failures
from app.database.revision import migrate
from app.database.run_rows import hold_run
from app.judge.wording import LANGUAGES
from app.logs import set_up_logging
from app.queue.celery_app import check_broker, embedded_broker, ensure_broker, make_app
from producer.check import check
from producer.enqueue import prepare, publish
from producer.local import LocalOptions, RunLocally
from producer.options import collect, run_options
from producer.progress import Progress, log_above
from producer.report import describe, warnings
from producer.steering import COMMANDS
from producer.verify import verify_command
from producer.waiting import wait_for_end


@click.group(cls=FarmGroup)
def main() -> None:
    """Turn stage-1 candidates into described relations.

    Example: producer run --stage1-result recall_results.json --input-data images.json --output out.json
    """
    set_up_logging()


@main.command()
@run_options
@log_options
@click.option("--wait", is_flag=True, help="Wait until every pair of the run is done or failed; workers must be up.")
@json_option
@state_dir_option
@handle_errors
def enqueue(as_json: bool, wait: bool, state_dir: Path | None, **given: Any) -> None:
    """Put a run's pending pairs into the queue: those with neither a result nor a failure.

    Idempotent: repeated, it enqueues exactly the pairs that are still pending.

    Example: producer enqueue --stage1-result recall.json --input-data images.json --model-path /models/Qwen3-VL-8B
    """
    options = collect(given)
    settings = settings_from(
        state_dir=state_dir, model=options.model_path, model_revision=options.model_revision, base_url=options.base_url,
        **given,
    )  # fmt: skip
    request = options.request(settings, {})
    request.model.refuse_missing()
    check_broker(settings)
    database = open_database(settings)
    progress = Progress()
    log_above(progress, settings)
    prepared = prepare(database, request, options.inputs(), progress)
    for line in warnings(prepared):
        say(line, err=True)
    if prepared.run.state != ACTIVE:
        name, state = prepared.run.name, prepared.run.state
        say(f"WARNING: run {name} is {state}: `producer resume {name}` has its pairs described", err=True)
    ensure_broker(settings)
    shards = settings.queue_shards
    enqueued = publish(
        database, make_app(settings), prepared.run, shards, progress, total=prepared.open, replaced=prepared.replaced
    )
    say(json.dumps(prepared.report(enqueued)) if as_json else describe(prepared, enqueued))
    if wait:
        wait_for_end(database, prepared, progress)


@main.command()
@click.option(
    "--reason",
    "reasons",
    multiple=True,
    show_default="every failure",
    help="Reason whose failures are retried; may be given several times.",
)
@json_option
@run_option
@state_dir_option
@handle_errors
def retry(reasons: tuple[str, ...], as_json: bool, run_name: str | None, state_dir: Path | None) -> None:
    """Forget a run's failures and put their pairs back into the queue.

    Example: producer retry --reason "image unreadable"
    """
    settings = settings_from(state_dir=state_dir)
    check_broker(settings)
    database = open_database(settings)
    with database.begin() as connection:
        run = hold_run(connection, run_name)
        forgotten = len(forget_failures(connection, run, reasons))
    if forgotten:
        ensure_broker(settings)
        publish(database, make_app(settings), run, settings.queue_shards, Progress(), total=forgotten)
    say(
        json.dumps({"run": run.name, "retried": forgotten})
        if as_json
        else f"retried: {forgotten} failed pairs requeued"
    )


@main.command()
@run_options
@click.option(
    "--output", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Final JSON file to write."
)
@click.option("--num-gpus", type=WholeNumber(min=0), show_default="all visible", help="GPUs to use; 0 runs on the CPU.")
@worker_options
@log_options
@click.option(
    "--strict",
    is_flag=True,
    help="Exit with status 1 if any pair is pending or failed, or a description never came to an answer.",
)
@click.option(
    "--image-cache/--no-image-cache",
    "image_cache",
    default=None,
    help="Accepted from the older script, without effect: each image is encoded once in any case.",
)
@click.option(
    "--save-interval",
    type=WholeNumber(),
    metavar="PAIRS",
    help="Accepted from the older script, without effect: each finished pair is saved at once.",
)
@click.option(
    "--cleanup-interval",
    "--memory-cleanup-interval",
    type=WholeNumber(),
    metavar="PAIRS",
    help="Accepted from the older script, without effect: the engine keeps to its share of memory.",
)
@state_dir_option
@handle_errors
def run(**given: Any) -> None:
    """Describe all pairs on this machine: enqueue, start workers, wait, export. Interrupted, the same command resumes.

    Example: producer run --stage1-result recall_results.json --input-data images.json --output out.json --num-gpus 0
    """
    options = collect(given)
    _say_what_replaces(given)
    RunLocally(options, LocalOptions(**given)).run()


@main.command("check")
@click.option(
    "--language",
    type=click.Choice([*LANGUAGES, "any"]),
    show_default="that of the run's prompt",
    help="Language that descriptions ought to be in.",
)
@json_option
@run_option
@state_dir_option
@handle_errors
def check_command(language: str | None, as_json: bool, run_name: str | None, state_dir: Path | None) -> None:
    """Check a run's new and changed descriptions and count its candidates' recall; `results check` shows both.

    Example: producer check
    """
    done = check(open_database(settings_from(state_dir=state_dir)), run_name, language, Progress())
    say(
        json.dumps(asdict(done))
        if as_json
        else f"checked: {done.texts:,} texts of {done.pairs:,} pairs (results check shows what was found)"
    )


@main.command("migrate")
@state_dir_option
@handle_errors
def migrate_command(state_dir: Path | None) -> None:
    """Create the database's schema, or update it to this version. Other producer commands do so, too.

    Example: producer migrate
    """
    before, after = migrate(open_database(settings_from(state_dir=state_dir), migrate=False))
    say(f"schema {after}: nothing to do" if before == after else f"schema {after} (before: {before or 'none'})")


for each in (*COMMANDS, verify_command):
    main.add_command(each)


@main.group()
def broker() -> None:
    """Start and stop the embedded broker, which serves where no REDIS_URL is set.

    Example: producer broker stop
    """


@broker.command("start")
@state_dir_option
@handle_errors
def broker_start(state_dir: Path | None) -> None:
    """Start the embedded broker, if it does not run.

    Example: producer broker start
    """
    settings = settings_from(state_dir=state_dir)
    started = embedded_broker(settings).ensure()
    say(f"{'started' if started else 'running'}: {embedded_broker(settings).socket}")


@broker.command("stop")
@state_dir_option
@handle_errors
def broker_stop(state_dir: Path | None) -> None:
    """Stop the embedded broker; its queue is kept on disk.

    Example: producer broker stop
    """
    stopped = embedded_broker(settings_from(state_dir=state_dir)).stop()
    say("stopped" if stopped else "not running")


_REPLACED = {
    "image_cache": "--image-cache has no effect: each image is encoded once in any case",
    "save_interval": "--save-interval has no effect: each finished pair is in the database at once",
    "cleanup_interval": "--cleanup-interval has no effect: the engine keeps to its share of memory",
}


def _say_what_replaces(given: dict[str, Any]) -> None:
    for name, replacement in _REPLACED.items():
        if given.pop(name) is not None:
            say(f"note: {replacement}", err=True)
