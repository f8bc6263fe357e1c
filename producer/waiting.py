"""Waiting for a run's end, and saying meanwhile how it stands."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from app.commands import say
from app.database.connection import reading
from app.database.records import ACTIVE, CANCELLED, Counts
from app.database.run_rows import find_run
from app.database.tally_rows import counts_of
from app.errors import RunError
from producer.prepared import Prepared
from producer.progress import Progress

_LOOK_S = 0.5
_SAY_EVERY_S = 30.0


def wait_for_end(
    database: Engine, prepared: Prepared, progress: Progress, *, check: Callable[[], None] = lambda: None
) -> None:
    """Return once every pair of the run is done or failed.

    ``check`` is called with each look, and may raise. Raises RunError if the run is cancelled or deleted.
    """
    ended = prepared.counts.done + prepared.counts.failed
    said = float("-inf")
    with progress.phase("describing pairs", prepared.counts.pairs, done=ended) as advance:
        while True:
            counts, state = _look(database, prepared)
            if counts is not None:
                advance(counts.done + counts.failed - ended)
                ended = counts.done + counts.failed
                if not counts.pending:
                    return
            if state == CANCELLED:
                name = prepared.run.name
                raise RunError(f"run {name} is cancelled: its results stay, and `producer resume {name}` goes on")
            if state != ACTIVE and time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                say(f"run {prepared.run.name} is {state}: `producer resume {prepared.run.name}` goes on", err=True)
            check()
            time.sleep(_LOOK_S)


def _look(database: Engine, prepared: Prepared) -> tuple[Counts | None, str]:
    try:
        with reading(database) as connection:
            run = find_run(connection, prepared.run.name)
            if run.uuid != prepared.run.uuid:
                raise RunError(f"run {run.name} was made again with other settings by another command")
            return counts_of(connection, run), run.state
    except DBAPIError:
        return None, ACTIVE  # it is away; the workers wait for it too
