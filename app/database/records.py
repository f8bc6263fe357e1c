"""Rows as plain objects, which every module of the database hands on."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, NamedTuple

ACTIVE, PAUSED, CANCELLED = STATES = ("active", "paused", "cancelled")
"""The states of a run."""


@dataclass(frozen=True)
class RunSettings:
    """What makes a run's text what it is. Two enqueues of one run must agree on all of it."""

    model: str
    model_revision: str | None
    model_config_hash: str | None  # None where the model's files are not on the producer's host
    style: str
    template_hash: str
    top_k: int
    max_new_tokens: int
    temperature: float
    seed: int
    min_pixels: int | None
    max_pixels: int | None
    top_p: float = 1.0
    top_k_sampling: int = 0  # ``top_k`` is of predicates
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """As the database keeps it. What came later than the first version is left out where it says nothing, so that
        workers of the version before can serve a run that needs nothing new.
        """
        later = {each.name: each.default for each in fields(self) if each.default is not MISSING}
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}


@dataclass(frozen=True)
class Run:
    """A row of the runs table."""

    id: int
    uuid: str
    name: str
    settings: RunSettings
    template: dict[str, str]
    model_key: str
    image_root: str
    expected: int
    options: dict[str, Any]
    created_at: float
    state: str = ACTIVE
    priority: int = 0
    model_hash: str | None = None
    epoch: str | None = None
    published_upto: int = 0


class QueuedPair(NamedTuple):
    """As much of a pair as its message needs."""

    id: int
    image_id: str


@dataclass(frozen=True)
class Counts:
    """A run's pairs by what became of them, and the texts of those that are done."""

    pairs: int = 0
    done: int = 0
    failed: int = 0
    stale: int = 0  # results of an older request: not done, until their pair is described again
    texts: int = 0
    tokens: int = 0
    texts_reused: int = 0  # of ``texts``, copied instead of generated
    texts_cut: int = 0  # of ``texts``, ended by the limit of new tokens
    texts_repeating: int = 0  # of ``texts``, whose end is one piece over and over
    texts_unclosed: int = 0  # of ``texts``, whose reasoning never came to an answer

    @property
    def pending(self) -> int:
        """Pairs that are neither done nor failed."""
        return self.pairs - self.done - self.failed
