"""Waiting for a run's end, and saying meanwhile how it stands."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from app.database.connection import reading
from app.database.records import ACTIVE, CANCELLED, Counts
from app.database.run_rows import find_run
from app.database.tally_rows import counts_of
from app.database.worker_rows import workers_up
from app.errors import RunError
from producer.prepared import Prepared
from producer.progress import Progress

_LOOK_S = 0.5
_SAY_EVERY_S = 30.0
_ALIVE_S = 60.0  # a worker that was seen within this is up


def wait_for_end(
    database: Engine, prepared: Prepared, progress: Progress, *, check: Callable[[], None] = lambda: None
) -> None:
    """Return once every pair of the run is done or failed.

    ``check`` is called with each look, and may raise. Raises RunError if the run is cancelled or deleted.
    """
    ended = prepared.counts.done + prepared.counts.failed
    pace = Pace(ended, time.monotonic())
    said = float("-inf")
    with progress.describing("waiting for a worker", prepared.counts.pairs, done=ended) as show:
        while True:
            counts, state, ready = _look(database, prepared)
            if counts is not None:
                ended = counts.done + counts.failed
                show(pace.phase(ended, time.monotonic(), ready=ready), ended, pace.rate)
                if not counts.pending:
                    return
            else:
                show("waiting for the database", ended, 0.0)
            if state == CANCELLED:
                name = prepared.run.name
                raise RunError(f"run {name} is cancelled: its results stay, and `producer resume {name}` goes on")
            if state != ACTIVE and time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                progress.say(f"run {prepared.run.name} is {state}: `producer resume {prepared.run.name}` goes on")
            check()
            time.sleep(_LOOK_S)


class Pace:
    """How fast a run goes: the rate is that since its first pair ended here, for before that the model was loaded."""

    def __init__(self, ended: int, began: float) -> None:
        self._began = began
        self._before, self._ended = ended, ended
        self._first: tuple[float, int] | None = None  # when the first ended, and how many had then
        self.rate = 0.0  # pairs a second; 0 before the second has ended

    def phase(self, ended: int, present: float, *, ready: bool) -> str:
        """What is under way, in words, now (in seconds, as ``began``) that so many pairs have ended."""
        if ended > self._before and self._first is None:
            self._first = (present, ended)
        if self._first is not None:
            since, count = self._first
            if ended > count:
                self.rate = (ended - count) / (present - since)
            return "describing"
        return f"{'first descriptions' if ready else 'loading the model'} ({present - self._began:.0f} s)"


def _look(database: Engine, prepared: Prepared) -> tuple[Counts | None, str, bool]:
    """The run's counts, its state, and whether a worker that serves it is up."""
    try:
        with reading(database) as connection:
            run = find_run(connection, prepared.run.name)
            if run.uuid != prepared.run.uuid:
                raise RunError(f"run {run.name} was made again with other settings by another command")
            up = workers_up(connection, _ALIVE_S)
            ready = any(run.model_key in worker.about["model_keys"] for worker in up)
            return counts_of(connection, run), run.state, ready
    except DBAPIError:
        return None, ACTIVE, False  # it is away; the workers wait for it too
