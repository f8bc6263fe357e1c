"""What a worker does alongside its pairs: renew its leases, choose the runs it serves, keep their windows filled.

The database is the queue; Redis holds a window of it. Whichever worker notices first publishes what is due: pairs that
were never published, pairs whose worker is gone, pairs of a queue that was lost.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from threading import Event
from typing import Protocol

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.database.claim_rows import renew_claims
from app.database.connection import reading
from app.database.publish_rows import publish_from_start
from app.database.records import ACTIVE, CANCELLED, Run
from app.database.run_rows import bind_model, runs_of_models
from app.database.source_rows import sources_of
from app.database.tally_rows import claimed, counts_of
from app.database.worker_rows import worker_seen
from app.queue.client import BROKER_AWAY, explain
from app.queue.keys import run_lists
from app.queue.publisher import Broker
from app.queue.shards import Served
from app.queue.window import Window, window_of
from app.settings import Settings
from workers.helper_threads import start_helper
from workers.identity import WorkerIdentity

log = logging.getLogger(__name__)

_SERVED_RUNS = 8  # at once: each has as many lists as there are shards, and BRPOP names them all
_LOST_AFTER_SWEEPS = 2  # without a message, while pairs are pending that nobody has
_AFTER_FAILURE_S = 2.0  # until the next try where Redis or the database was away
_STALLED_AFTER_S = 60.0  # a worker that takes nothing for so long, while messages wait, is cured by a new process alone
_STALLED_AFTER_SWEEPS = 6  # but it is looked at once a sweep: a slow one may catch a healthy worker between two pairs
_SAY_EVERY_S = 60.0


class Work(Protocol):
    """What maintenance asks of and tells the process's pairs (``workers.pair_runner.PairRunner``)."""

    def held(self) -> list[int]:
        """The pairs whose leases must be renewed."""
        ...

    def in_flight(self) -> int:
        """Messages in flight."""
        ...

    def runs(self) -> set[int]:
        """The runs of the pairs in flight."""
        ...

    def abandon(self, run_id: int) -> int:
        """Let go of a run's pairs; gives how many."""
        ...

    def may_take_over(self) -> bool:
        """Whether an expired lease means that its holder is gone."""
        ...

    def note_database_away(self) -> None:
        """The database could not be reached."""
        ...


class Maintenance:
    """Two threads of one worker process."""

    def __init__(
        self,
        settings: Settings,
        database: Engine,
        broker: Broker,
        work: Work,
        served: Served,
        worker: WorkerIdentity,
        *,
        when_stalled: Callable[[], None],
        died: Callable[[str], None] | None = None,
    ) -> None:
        """``when_stalled`` is called when messages wait and none has come for a minute: the process had better end;
        ``died`` if one of the threads dies.
        """
        self._settings = settings
        self._database = database
        self._broker = broker
        self._work = work
        self._served = served
        self._worker = worker
        self._when_stalled = when_stalled
        self._died = died
        self._window = Window(database, broker, settings.queue_shards)
        self._stopping = Event()
        self._heard: float | None = None  # when a message last came or none waited; None before the consumer starts
        self._empty_sweeps: dict[int, int] = {}
        self._refused: dict[int, str] = {}
        self._dropped: set[int] = set()
        self._said_idle: float | None = None  # when; None while some run is served

    def start(self) -> None:
        """Start both threads; the first sweep is done before this returns, or fails like a later one."""
        self._guarded(self.sweep, "sweep")
        self._guarded(self._renew, "renew leases")  # whoever looks sees at once that this worker is up
        self._every(self._settings.lease_s / 4, self._renew, "renew leases")
        self._every(self._settings.sweep_s, self.sweep, "sweep")

    def stop(self) -> None:
        """End both; leases are renewed no more."""
        self._stopping.set()

    def consuming(self) -> None:
        """The consumer has started: from now on messages are expected to come."""
        self._heard = time.monotonic()

    def consumer_stopped(self) -> None:
        """The consumer waits for Redis: that none comes is not its fault, and no new process would mend it."""
        self._heard = None

    def sweep(self) -> int:
        """Serve the runs that want it and publish what is due; gives how many pairs were published."""
        with reading(self._database) as connection:
            runs = runs_of_models(connection, self._worker.model_keys)
            pending = {run.id: counts_of(connection, run).pending for run in runs}
            held = {run.id: claimed(connection, run) for run in runs}
        for gone in self._work.runs() - pending.keys():
            log.warning("a run was deleted: %d pairs in flight are let go", self._work.abandon(gone))
        runs = [run for run in runs if self._settings.only_run in (None, run.uuid)]
        for run in runs:
            if run.state == CANCELLED:
                self._end(run)
        active = [run for run in runs if run.state == ACTIVE and self._may_serve(run)]
        wanted = [run for run in active if pending[run.id]][:_SERVED_RUNS]
        self._served.set([run_lists(run.model_key, run.uuid, self._settings.queue_shards) for run in wanted])
        self._say_idle(not wanted)
        waiting = {run.id: self._window.waiting(run) for run in wanted}
        self._listen(sum(waiting.values()))
        published = self._return_orphans(active)
        return published + sum(self._fill(run, waiting[run.id], pending[run.id] - held[run.id]) for run in wanted)

    def _renew(self) -> None:
        renew_claims(self._database, self._worker.name, self._settings.lease_s, self._work.held())
        with self._database.begin() as connection:
            worker_seen(connection, self._worker.name, self._worker.seen())

    def _may_serve(self, run: Run) -> bool:
        """Bind the run to this worker's model, weights and all; say once why it cannot be served."""
        if run.model_hash is None:
            with self._database.begin() as connection:
                bound = bind_model(connection, run, self._worker.model_hash)
        else:
            bound = run.model_hash == self._worker.model_hash
        refusal = (
            ""
            if bound
            else f"it is described by another model ({run.model_hash}), this one is {self._worker.model_hash}"
        )
        refusal = refusal or self._ambiguous_root(run)
        if refusal and self._refused.get(run.id) != refusal:
            log.error("run %s is not served: %s", run.name, refusal)
        self._refused[run.id] = refusal
        return not refusal

    def _ambiguous_root(self, run: Run) -> str:
        """One root of this host cannot stand for several of the producer's."""
        if self._settings.image_root is None or self._settings.prefixes:
            return ""
        with reading(self._database) as connection:
            roots = sorted({source.image_root for source in sources_of(connection, run)})
        if len(roots) < 2:
            return ""
        return (
            f"its sources have several image roots ({', '.join(roots)}): give --image-prefix OLD=NEW for each of them"
        )

    def _end(self, run: Run) -> None:
        if given_up := self._work.abandon(run.id):
            log.warning("run %s was cancelled: %d pairs in flight are let go", run.name, given_up)
        if run.id not in self._dropped:
            self._broker.drop(run_lists(run.model_key, run.uuid, self._settings.queue_shards))
            self._dropped.add(run.id)

    def _return_orphans(self, runs: list[Run]) -> int:
        returned = self._window.return_orphans(runs, takeover=self._work.may_take_over())
        for name, number in returned.items():
            log.warning("run %s: requeued %d orphaned pairs (lease expired or worker gone)", name, number)
        return sum(returned.values())

    def _fill(self, run: Run, waiting: int, unclaimed: int) -> int:
        """Top up a run's window once it is half empty; what was lost message by message is published again."""
        window = window_of(run)
        self._dropped.discard(run.id)
        if 2 * waiting >= window or (waiting and unclaimed <= waiting):
            self._empty_sweeps[run.id] = 0
            return 0
        published, end = self._window.top_up(run, window - waiting)
        if published or waiting or unclaimed <= 0 or end is None:
            self._empty_sweeps[run.id] = 0
            return published
        self._empty_sweeps[run.id] = self._empty_sweeps.get(run.id, 0) + 1
        if self._empty_sweeps[run.id] >= _LOST_AFTER_SWEEPS and publish_from_start(self._database, run, end):
            log.warning("run %s: messages were lost: requeued %d pending pairs", run.name, unclaimed)
            self._empty_sweeps[run.id] = 0
            return self._window.top_up(run, window)[0]
        return 0

    def _listen(self, waiting: int) -> None:
        """A consumer that came out of a reconnection stalled (celery#8030) is cured by a new process alone."""
        present = time.monotonic()
        if self._heard is None:
            return
        if not waiting or self._work.in_flight():
            self._heard = present
        elif present - self._heard > max(_STALLED_AFTER_S, _STALLED_AFTER_SWEEPS * self._settings.sweep_s):
            self._when_stalled()

    def _say_idle(self, idle: bool) -> None:
        """A worker that serves nobody says so when that begins, whatever its log level, and now and then."""
        present = time.monotonic()
        if idle and (self._said_idle is None or present - self._said_idle >= _SAY_EVERY_S):
            level = logging.WARNING if self._said_idle is None else logging.INFO
            log.log(level, "no run wants this model (%s); waiting for one", ", ".join(self._worker.model_keys))
            self._said_idle = present
        elif not idle:
            self._said_idle = None

    def _every(self, seconds: float, action: Callable[[], object], name: str) -> None:
        def loop() -> None:
            # Workers that were started together must not ask together.
            pause = seconds
            while not self._stopping.wait(pause * random.uniform(0.75, 1.25)):
                pause = seconds if self._guarded(action, name) else min(seconds, _AFTER_FAILURE_S)

        start_helper(loop, name, self._died)

    def _guarded(self, action: Callable[[], object], name: str) -> bool:
        """Whether the action went well; a database or Redis that is away is said, and tried again later."""
        try:
            action()
        except (DBAPIError, PoolTimeout) as error:
            self._work.note_database_away()
            log.warning("cannot %s, retrying: the database is away (%s)", name, type(error).__name__)
            return False
        except BROKER_AWAY as error:
            self._heard = None if self._heard is None else time.monotonic()
            log.warning("cannot %s, retrying: Redis is away or refuses: %s", name, explain(error))
            return False
        return True
