"""Whether relations hold, asked of descriptions that are stored already."""

from __future__ import annotations

import json
from pathlib import Path

import click

from app.commands import FarmCommand, handle_errors, json_option, run_option, say, settings_from, state_dir_option
from app.database.connection import open_database
from app.database.pair_rows import done_pairs, verify
from app.database.run_rows import hold_run
from app.prompts import LANGUAGES
from app.queue.celery_app import ensure_broker, make_app
from producer.enqueue import publish
from producer.progress import Progress

_PAGE = 1_000


@click.command("verify", cls=FarmCommand)
@click.option(
    "--language",
    type=click.Choice(LANGUAGES),
    default=LANGUAGES[0],
    show_default=True,
    help="Language of the question.",
)
@json_option
@run_option
@state_dir_option
@handle_errors
def verify_command(language: str, as_json: bool, run_name: str | None, state_dir: Path | None) -> None:
    """Ask of a run's described relations whether they hold; the descriptions stay as they are.

    Workers answer, one token a predicate. A repeat asks only for what has no answer.

    Example: producer verify --run default
    """
    settings = settings_from(state_dir=state_dir)
    database = open_database(settings)
    number, after, progress = 0, -1, Progress()
    with progress.phase("choosing pairs", None) as advance:
        while True:
            with database.begin() as connection:  # a page each, so that workers can write in between
                run = hold_run(connection, run_name)
                rows = list(done_pairs(connection, run, after=after, limit=_PAGE))
                number += verify(connection, run, rows, language)
            if not rows:
                break
            after = rows[-1].id
            advance(len(rows))
    if number:
        ensure_broker(settings)
        publish(database, make_app(settings), run, settings.queue_shards, progress, total=number)
    say(json.dumps({"run": run.name, "pairs": number}) if as_json else f"{number} pairs are to be verified")
