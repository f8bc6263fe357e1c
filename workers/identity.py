"""Who a worker process is and what it describes with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class WorkerIdentity:
    """One worker process, as claims, results and operators know it."""

    name: str
    model_keys: tuple[str, ...]  # of the queues it serves
    model_hash: str  # of all of its model
    provenance: dict[str, Any] = field(default_factory=dict)  # kept with each result: engine, dtype, software
    about: dict[str, Any] = field(default_factory=dict)  # what an operator wants to know: host, process, device
    lately: Callable[[], dict[str, Any]] = dict  # what it did in the last seconds

    def seen(self) -> dict[str, Any]:
        """What the table of workers holds."""
        return {**self.about, **self.provenance, "model_keys": list(self.model_keys), "lately": self.lately()}
