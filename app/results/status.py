"""How a run stands: its counts, its rate, when it will be done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from celery import Celery
from sqlalchemy import Engine

from app.database.connection import reading
from app.database.pair_rows import last_account
from app.database.result_rows import count_outcomes, failure_counts, finished_since
from app.database.run_rows import find_run
from app.queue.celery_app import all_queues
from app.queue.publisher import Broker

_WINDOW_S = 300.0  # over which the rate is taken


@dataclass(frozen=True)
class Status:
    """One look at a run. ``queued`` counts the messages of its model, which other runs may share."""

    run: str
    expected: int
    done: int
    failed: int
    claimed: int
    queued: int | None  # None where the broker does not answer
    pending: int  # neither done nor failed: queued, running, or lost from the queue
    rate: float  # pairs per second over the last minutes
    eta: float | None  # seconds to the end at that rate
    failures: dict[str, int]  # reason -> pairs
    dropped: dict[str, int]  # reason -> what the last enqueue dropped

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return dict(self.__dict__)


def status(database: Engine, app: Celery | None, shards: int, run_name: str | None = None) -> Status:
    """Look at a run; without a broker (``app`` None) ``queued`` stays unknown. Raises RunError."""
    with reading(database) as connection:
        run = find_run(connection, run_name)
        counts = count_outcomes(connection, run)
        number, span = finished_since(connection, run, _WINDOW_S)
        failures = failure_counts(connection, run)
        dropped = last_account(connection, run).get("dropped", {})
    pending = counts.expected - counts.done - counts.failed
    rate = number / span if span > 0 else 0.0
    return Status(
        run=run.name,
        expected=counts.expected,
        done=counts.done,
        failed=counts.failed,
        claimed=counts.claimed,
        queued=None if app is None else Broker(app).waiting(all_queues(run.model_key, shards)),
        pending=pending,
        rate=round(rate, 3),
        eta=0.0 if not pending else round(pending / rate, 1) if rate else None,
        failures=failures,
        dropped=dropped,
    )
