"""Many pairs at once, or one alone: the lock behind which a suspect pair runs by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class SharedExclusiveLock:
    """Any number of holders of ``together``, or one of ``alone``; who waits to be alone goes first."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._together = 0
        self._alone = False
        self._waiting = 0

    @contextmanager
    def enter(self, *, alone: bool) -> Iterator[None]:
        """Hold the gate for as long as the block lasts."""
        (self._enter_alone if alone else self._enter_together)()
        try:
            yield
        finally:
            with self._changed:
                if alone:
                    self._alone = False
                else:
                    self._together -= 1
                self._changed.notify_all()

    def _enter_together(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and not self._waiting)
            self._together += 1

    def _enter_alone(self) -> None:
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: not self._alone and not self._together)
            finally:
                self._waiting -= 1
            self._alone = True
