"""How a run stands: its counts, its rate, when it will be done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from celery import Celery
from sqlalchemy import Connection, Engine, select

from app.database.connection import reading
from app.database.dialect import now
from app.database.records import ACTIVE, Counts, Run
from app.database.result_rows import failure_counts, finished_since
from app.database.run_rows import all_runs, find_run
from app.database.source_rows import last_account
from app.database.tally_rows import claimed, counts_of
from app.database.worker_rows import WorkerRow, workers_up
from app.queue.keys import run_lists
from app.queue.publisher import Broker

_WINDOW_S = 300.0  # over which the rate is taken


_ALIVE_S = 60.0  # a worker that was seen within this is up


@dataclass(frozen=True)
class Status:
    """One look at a run, which costs the same however large it is."""

    run: str
    state: str  # active, paused, cancelled
    priority: int
    age: float  # seconds since the run was made
    model: str
    expected: int  # pairs
    done: int
    failed: int
    claimed: int
    queued: int | None  # messages of the run; None where the broker does not answer
    dead_letters: int | None  # elements of all queues that could not be read; None like the one before
    pending: int  # neither done nor failed: queued, claimed, or not published yet
    stale: int  # results of an older request, that wait to be replaced
    texts: int
    texts_reused: int
    texts_cut_off: int
    tokens: int  # of these texts
    texts_repeating: int
    texts_unclosed: int  # reasoning without an answer
    rate: float  # pairs per second over the last minutes
    eta: float | None  # seconds to the end at that rate
    failures: dict[str, int]  # reason -> pairs
    dropped: dict[str, int]  # reason -> what the last enqueue dropped
    workers: list[str]  # those up that serve the run's model
    notes: list[str]  # what an operator should know

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class WorkerStatus:
    """One worker that is up, as it last said of itself."""

    name: str
    host: str
    device: str
    engine: str
    model: str
    age: float  # seconds since it was started
    seen: float  # seconds since it said so
    restarts: int
    in_flight: int  # pairs
    descriptions_per_second: float
    tokens_per_second: float
    rows_at_work: float
    rows_possible: int
    oldest_claim_age_seconds: float
    memory: dict[str, int]  # bytes, by kind
    last_error: str

    @classmethod
    def of(cls, row: WorkerRow, present: float) -> WorkerStatus:
        """A row as it is now; one of an older version says less."""
        about, lately = row.about, row.about.get("lately", {})
        return cls(
            name=row.name,
            host=str(about.get("host", "")),
            device=str(about.get("device", "")),
            engine=str(about.get("engine") or ""),
            model=str(about.get("model", "")),
            age=round(present - row.started_at, 1),
            seen=round(present - row.seen_at, 1),
            restarts=int(about.get("restarts", 0)),
            in_flight=int(lately.get("in_flight", 0)),
            descriptions_per_second=float(lately.get("descriptions_per_s", 0.0)),
            tokens_per_second=float(lately.get("tokens_per_s", 0.0)),
            rows_at_work=float(lately.get("rows_at_work", 0.0)),
            rows_possible=int(lately.get("rows_possible", 0)),
            oldest_claim_age_seconds=float(lately.get("oldest_claim_s", 0.0)),
            memory=dict(lately.get("memory", {})),
            last_error=str(lately.get("last_error", "")),
        )


def status(database: Engine, app: Celery | None, shards: int, run_name: str | None = None) -> Status:
    """Look at a run; without a broker (``app`` None) ``queued`` stays unknown. Raises RunError."""
    with reading(database) as connection:
        return _look(connection, find_run(connection, run_name), app and Broker(app), shards)


def all_statuses(database: Engine, app: Celery | None, shards: int) -> list[Status]:
    """A look at every run, the oldest first."""
    broker = app and Broker(app)
    with reading(database) as connection:
        return [_look(connection, run, broker, shards) for run in all_runs(connection)]


def worker_statuses(database: Engine) -> list[WorkerStatus]:
    """The workers that are up, by name."""
    with reading(database) as connection:
        present = connection.execute(select(now(connection))).scalar_one()
        return [WorkerStatus.of(row, present) for row in workers_up(connection, _ALIVE_S)]


def _look(connection: Connection, run: Run, broker: Broker | None, shards: int) -> Status:
    counts = counts_of(connection, run)
    number, span = finished_since(connection, run, _WINDOW_S)
    rate = number / span if span > 0 else 0.0
    serving = [worker for worker in workers_up(connection, _ALIVE_S) if run.model_key in worker.about["model_keys"]]
    return Status(
        run=run.name,
        state=run.state,
        priority=run.priority,
        age=round(connection.execute(select(now(connection))).scalar_one() - run.created_at, 1),
        model=run.settings.model,
        expected=counts.pairs,
        done=counts.done,
        failed=counts.failed,
        claimed=claimed(connection, run),
        queued=None if broker is None else broker.waiting(run_lists(run.model_key, run.uuid, shards)),
        dead_letters=None if broker is None else broker.dead_letters(),
        pending=counts.pending,
        stale=counts.stale,
        texts=counts.texts,
        texts_reused=counts.texts_reused,
        texts_cut_off=counts.texts_cut,
        tokens=counts.tokens,
        texts_repeating=counts.texts_repeating,
        texts_unclosed=counts.texts_unclosed,
        rate=round(rate, 3),
        eta=0.0 if not counts.pending else round(counts.pending / rate, 1) if rate else None,
        failures=failure_counts(connection, run),
        dropped=last_account(connection, run).get("dropped", {}),
        workers=[worker.name for worker in serving],
        notes=list(_notes(run, counts, bool(serving))),
    )


def _notes(run: Run, counts: Counts, served: bool) -> Iterator[str]:
    if run.state != ACTIVE:
        yield f"the run is {run.state}: `producer resume {run.name}` goes on with it"
    elif counts.pending and not served:
        yield f"no worker serves this run's model ({run.settings.model})"
