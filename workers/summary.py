"""One line a minute of what a worker did in it; the same figures go to its row, for ``results status --watch``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event
from typing import Any

from workers.helper_threads import start_helper
from workers.vitals import Snapshot, Vitals

log = logging.getLogger(__name__)

_LOOK_S = 5.0  # over which the figures of the worker's row are taken


class Summary:
    """A thread that looks at the vitals every few seconds, and says now and then what it saw."""

    def __init__(self, name: str, vitals: Vitals, every_s: float, died: Callable[[str], None] | None = None) -> None:
        self._name, self._vitals, self._every_s, self._died = name, vitals, every_s, died
        self._stopping = Event()
        self._looks = [vitals.snapshot()]

    def start(self) -> None:
        """Begin."""
        start_helper(self._loop, "summary", self._died)

    def stop(self) -> None:
        """End; the last minute, which is not whole, is said, too."""
        self._stopping.set()

    def now(self) -> Snapshot:
        """A look at this moment."""
        return self._vitals.snapshot()

    def figures(self) -> dict[str, Any]:
        """Those of the last seconds, for the worker's row."""
        before, now = self._looks[max(0, len(self._looks) - 2)], self._vitals.snapshot()
        return figures(before, now)

    def _loop(self) -> None:
        said = self._looks[0]
        pause = min(_LOOK_S, self._every_s)
        while not (ending := self._stopping.wait(pause)) or self._looks[-1].at > said.at:
            now = self._vitals.snapshot()
            self._looks = [self._looks[-1], now]
            if ending or now.at - said.at >= self._every_s - pause / 2:
                self._say(said, now)
                said = now
            if ending:
                return

    def _say(self, before: Snapshot, now: Snapshot) -> None:
        seen = figures(before, now)
        memory = ", ".join(f"{kind} {size / 2**30:.2f} GiB" for kind, size in now.memory.items())
        rows = f"{seen['rows_at_work']:.1f}" + (f" of {seen['rows_possible']}" if seen["rows_possible"] else "")
        log.info(
            "summary of %.0f s: %d pairs done, %d failed, %d in flight; %.2f descriptions/s, %.1f tokens/s, "
            "%s rows at work; memory: %s",
            now.at - before.at, seen["pairs"], seen["failed"], now.in_flight, seen["descriptions_per_s"],
            seen["tokens_per_s"], rows, memory, extra={"worker": self._name, **seen},
        )  # fmt: skip


def figures(before: Snapshot, now: Snapshot) -> dict[str, Any]:
    """What happened between two looks."""
    seconds = max(1e-9, now.at - before.at)
    return {
        "pairs": now.pairs["done"] - before.pairs["done"],
        "failed": now.pairs["failed"] - before.pairs["failed"],
        "descriptions_per_s": round((now.generated() - before.generated()) / seconds, 3),
        "tokens_per_s": round((now.engine.get("tokens", 0.0) - before.engine.get("tokens", 0.0)) / seconds, 2),
        "rows_at_work": round(now.rows_at_work(before), 1),
        "rows_possible": now.rows_possible(),
        "in_flight": now.in_flight,
        "oldest_claim_s": round(now.oldest_claim_s, 1),
        "memory": dict(now.memory),
        "last_error": now.last_error,
        "last_error_at": now.last_error_at,
    }
