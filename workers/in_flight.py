"""The pairs that one worker process is busy with: one thread for each, however often it was delivered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any

from app.database.claim_rows import Claim, Message


@dataclass(frozen=True)
class Ended:
    """What became of a message: with neither, it asked for nothing that was still to do."""

    done: bool = False
    failure: str = ""


class RunEnded(Exception):
    """The pair's run was cancelled or deleted while it was in flight."""


class InFlight:
    """Knows messages by their pair and claims by their run; safe to use from every thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._running: dict[Message, Future[Ended]] = {}
        self._held: dict[int, tuple[int, list[Future[Any]]]] = {}  # pair -> its run, what the engine owes it
        self._since: dict[int, float] = {}  # pair -> when this process claimed it

    def __len__(self) -> int:
        return len(self._running)

    def once(self, message: Message, work: Callable[[], Ended]) -> Ended:
        """Do ``work`` for a message; a second delivery joins the first, which then acknowledges both."""
        with self._lock:
            earlier = self._running.get(message)
            if earlier is None:
                mine = self._running[message] = Future()
        if earlier is not None:
            earlier.result()
            return Ended()
        try:
            mine.set_result(ended := work())
            return ended
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._running[message]

    @contextmanager
    def holding(self, claim: Claim) -> Iterator[None]:
        """The claim is this process's for as long as the block lasts."""
        with self._lock:
            self._held[claim.pair_id] = (claim.run.id, [])
            self._since[claim.pair_id] = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._held.pop(claim.pair_id, None)
                self._since.pop(claim.pair_id, None)

    def owes(self, claim: Claim, futures: list[Future[Any]]) -> None:
        """What the engine is asked for a claim."""
        with self._lock:
            self._held[claim.pair_id] = (claim.run.id, futures)

    def held(self) -> list[int]:
        """The pairs that are claimed."""
        with self._lock:
            return list(self._held)

    def oldest_s(self) -> float:
        """Seconds since the oldest claim that is held was made; 0 where none is."""
        with self._lock:
            return time.monotonic() - min(self._since.values()) if self._since else 0.0

    def runs(self) -> set[int]:
        """The runs of the pairs that are claimed."""
        with self._lock:
            return {run for run, _ in self._held.values()}

    def abandon(self, run_id: int) -> int:
        """Let what the engine owes a run's pairs fail with RunEnded; gives how many pairs."""
        with self._lock:
            owed = [futures for run, futures in self._held.values() if run == run_id]
        for future in (future for futures in owed for future in futures):
            with suppress(Exception):  # it was done in this moment
                future.set_exception(RunEnded())
        return len(owed)
