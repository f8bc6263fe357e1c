"""How many requests may be at the server at once: found by trying, as TCP does (RFC 5681).

Doubled each round while all goes well at first; from the first sign of congestion on, halved at each and one more for
every round without. A server's wish to be left alone (``Retry-After``) holds all of them back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

FIRST = 4


class Closed(Exception):
    """Nothing may be sent any more."""


class AdaptiveLimit:
    """Counts exchanges (from taken to answered) and those of them that are at the server just now."""

    def __init__(self, most: int, first: int = FIRST) -> None:
        self._changed = threading.Condition()
        self._most = most
        self._limit = float(min(first, most))
        self._probing = True  # no congestion seen yet
        self._round = 0  # one more at each cut: what was sent before it says nothing new
        self._open = self._sending = 0
        self._hold_until = 0.0
        self._closed = False
        self._busy = self._sent = 0.0

    @property
    def limit(self) -> int:
        """Requests that may be at the server at once."""
        return int(self._limit)

    @property
    def sending(self) -> int:
        """Requests that are at the server."""
        return self._sending

    @property
    def occupancy(self) -> float:
        """The mean share of the limit in use when a request was sent."""
        return self._busy / max(1.0, self._sent)

    def begin(self) -> None:
        """Wait until one more exchange may begin. Raises Closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._open < self.limit)
            if self._closed:
                raise Closed
            self._open += 1

    def end(self) -> None:
        """An exchange is over, whatever came of it."""
        with self._changed:
            self._open -= 1
            self._changed.notify_all()

    @contextmanager
    def attempt(self) -> Iterator[int]:
        """Be at the server, once there is room and no hold; gives what ``congested`` wants. Raises Closed."""
        with self._changed:
            while not self._closed and (self._sending >= self.limit or time.monotonic() < self._hold_until):
                hold = self._hold_until - time.monotonic()
                self._changed.wait(hold if hold > 0 else None)
            if self._closed:
                raise Closed
            self._sending += 1
            self._sent += 1
            self._busy += self._sending / self.limit
            mark = self._round
        try:
            yield mark
        finally:
            with self._changed:
                self._sending -= 1
                self._changed.notify_all()

    def succeeded(self) -> None:
        """A reply came: a little more may be sent."""
        with self._changed:
            self._limit = min(float(self._most), self._limit + (1.0 if self._probing else 1.0 / self._limit))
            self._changed.notify_all()

    def congested(self, mark: int, hold_s: float = 0.0) -> None:
        """The server had too much: half as much from now on, once for all that was sent before the last cut."""
        with self._changed:
            self._hold_until = max(self._hold_until, time.monotonic() + hold_s)
            if mark == self._round:
                self._round += 1
                self._probing = False
                self._limit = max(1.0, self._limit / 2)
            self._changed.notify_all()

    def close(self) -> None:
        """Let go of everybody who waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
