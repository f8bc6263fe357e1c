"""Database work that outlasts the database: tried again until it is back, said once in a while."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Event
from typing import TypeVar

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

log = logging.getLogger(__name__)

Value = TypeVar("Value")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _SAY_EVERY_S = 0.1, 2.0, 30.0


class ShuttingDown(Exception):
    """The worker stops, and the database is still away."""


class RetryUntilUp:
    """Runs database actions until they succeed, and remembers when the database was last away."""

    def __init__(self, stopping: Event) -> None:
        self._stopping = stopping
        self._away_until = time.monotonic()  # what was before this process is not known to it
        self._said = float("-inf")

    def healthy_for(self) -> float:
        """Seconds since the last failed attempt of this process, or since its start."""
        return time.monotonic() - self._away_until

    def note_away(self) -> None:
        """Somebody else in the process found the database away."""
        self._away_until = time.monotonic()

    def __call__(self, action: Callable[[], Value]) -> Value:
        """The action's value, however long it takes. Raises ShuttingDown once the worker must end.

        A full disk, a read-only or locked file, a revoked right and a server that restarts all look alike here: nothing
        is lost as long as the process holds it, and an operator may mend it meanwhile. Raises at once what no waiting
        mends: IntegrityError, DataError.
        """
        pause = _FIRST_PAUSE_S
        while True:
            try:
                return action()
            except (IntegrityError, DataError):
                raise
            except (DBAPIError, PoolTimeout) as error:
                self.note_away()
                self._say(error)
                if self._stopping.wait(pause):
                    raise ShuttingDown(str(error)) from error
                pause = min(pause * 2, _LONGEST_PAUSE_S)

    def _say(self, error: Exception) -> None:
        if time.monotonic() - self._said >= _SAY_EVERY_S:
            self._said = time.monotonic()
            cause = getattr(error, "orig", None) or error
            log.error("database error, retrying, nothing is lost: %s", str(cause).strip())
