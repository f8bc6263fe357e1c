"""What an enqueue has stored, before anything of it is published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.database.records import Counts, Run
from app.database.store_rows import StoredPairs
from producer.texts import Texts


@dataclass(frozen=True)
class Prepared:
    """A run whose pairs are stored; nothing of it need be published yet."""

    run: Run
    stored: StoredPairs
    counts: Counts  # of the whole run
    resent: int  # failures of outside reasons that are tried again
    dropped: dict[str, int]  # reason -> count
    examples: dict[str, list[str]]  # reason -> where, for some
    pairs_dropped: int
    texts: Texts
    box_warning: str | None = None
    replaced: Run | None = None  # a run of that name without results, that had other settings

    @property
    def open(self) -> int:
        """Pairs of the run that have neither a result nor a failure."""
        return self.counts.pending

    def report(self, enqueued: int) -> dict[str, Any]:
        """What ``producer enqueue --json`` prints."""
        return {
            "run": self.run.name,
            "pairs": self.stored.pairs,
            "new": self.stored.new,
            "changed": self.stored.changed,
            "removed": self.stored.removed,
            "to_check": self.stored.to_check,
            "to_verify": self.stored.to_verify,
            "enqueued": enqueued,
            "texts_new": self.texts.new,
            "texts_reused": self.texts.reused,
            "texts_to_check": self.texts.to_check,
            "already_done": self.counts.done,
            "failed": self.counts.failed,
            "pending": self.counts.pending,
            "stale": self.counts.stale,
            "resent": self.resent,
            "dropped": self.dropped,
        }
