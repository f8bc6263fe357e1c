"""What one worker process has done since its start, and what it is doing: for its log, its metrics, its operator."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

_SHOWN = 200  # characters of the last error that an operator is shown


@dataclass(frozen=True)
class Snapshot:
    """One look; every count is since the start of the process."""

    at: float = field(default_factory=time.monotonic)
    pairs: Counter[str] = field(default_factory=Counter)  # done, failed, duplicate (its outcome was there already)
    texts: Counter[str] = field(default_factory=Counter)  # stop, length, reused
    tokens: Counter[str] = field(default_factory=Counter)  # of the same texts
    failures: Counter[str] = field(default_factory=Counter)  # by reason
    dropped: Counter[str] = field(default_factory=Counter)  # messages, by what the claim said
    retries: int = 0
    last_error: str = ""
    last_error_at: float | None = None  # seconds since 1970
    in_flight: int = 0  # pairs
    oldest_claim_s: float = 0.0  # how long the oldest of them has been claimed
    engine: Mapping[str, float] = field(default_factory=dict)  # Engine.stats
    memory: Mapping[str, int] = field(default_factory=dict)  # bytes, by "resident" and "device"

    def generated(self) -> int:
        """Texts that the model wrote."""
        return self.texts.total() - self.texts["reused"]

    def rows_possible(self) -> int:
        """Rows that the engine may decode together; 0 where it does not say."""
        return int(self.engine.get("slots") or self.engine.get("limit") or 0)

    def rows_at_work(self, before: Snapshot) -> float:
        """Rows that were decoded together since an earlier look, mean of the steps."""
        steps = self.engine.get("steps", 0.0) - before.engine.get("steps", 0.0)
        if "busy_slots" in self.engine:
            busy = self.engine["busy_slots"] - before.engine.get("busy_slots", 0.0)
            return busy / steps if steps > 0 else 0.0
        return self.engine.get("occupancy", 0.0) * self.rows_possible()


class Vitals:
    """Counts what ends; safe from every thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._pairs: Counter[str] = Counter()
        self._texts: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._retries = 0
        self._last_error = ""
        self._last_error_at: float | None = None
        self._engine: Callable[[], Mapping[str, float]] = dict
        self._in_flight: Callable[[], int] = int
        self._oldest_claim_s: Callable[[], float] = float

    def watch(
        self, engine: Callable[[], Mapping[str, float]], in_flight: Callable[[], int], oldest: Callable[[], float]
    ) -> None:
        """Where the engine's counters, the pairs in flight and the age of the oldest claim are asked for."""
        self._engine, self._in_flight, self._oldest_claim_s = engine, in_flight, oldest

    def ended(self, descriptions: Iterable[Mapping[str, Any]] | None, reason: str, detail: str, *, kept: bool) -> None:
        """A pair ended with its descriptions or a reason; not ``kept`` where it had its outcome already."""
        with self._lock:
            if not kept:
                self._pairs["duplicate"] += 1
            elif descriptions is None:
                self._pairs["failed"] += 1
                self._failures[reason] += 1
                self._note(f"{reason}: {detail}")
            else:
                self._pairs["done"] += 1
                for each in descriptions:
                    kind = "reused" if each.get("reused") else str(each["finish_reason"])
                    self._texts[kind] += 1
                    self._tokens[kind] += int(each["tokens"])

    def dropped(self, why: str) -> None:
        """A message asked for nothing that was to do."""
        with self._lock:
            self._dropped[why] += 1

    def retried(self, error: object) -> None:
        """What failed is tried again."""
        with self._lock:
            self._retries += 1
            self._note(str(error))

    def snapshot(self) -> Snapshot:
        """One look."""
        engine, in_flight, memory = self._engine(), self._in_flight(), memory_used()
        oldest = self._oldest_claim_s()
        with self._lock:
            return Snapshot(
                pairs=self._pairs.copy(),
                texts=self._texts.copy(),
                tokens=self._tokens.copy(),
                failures=self._failures.copy(),
                dropped=self._dropped.copy(),
                retries=self._retries,
                last_error=self._last_error,
                last_error_at=self._last_error_at,
                in_flight=in_flight,
                oldest_claim_s=oldest,
                engine=engine,
                memory=memory,
            )

    def _note(self, error: str) -> None:
        self._last_error, self._last_error_at = error[:_SHOWN], time.time()


def memory_used() -> dict[str, int]:
    """Bytes that this process holds: of the host's memory (Linux), and of its GPU's where it uses one."""
    found = {}
    statm = Path("/proc/self/statm")
    if statm.exists():
        found["resident"] = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    torch: Any = sys.modules.get("torch")  # loading it would take seconds, and a worker of a server has none
    if torch is not None and torch.cuda.is_initialized():
        found["device"] = int(torch.cuda.memory_reserved())
    return found
