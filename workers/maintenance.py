"""What a worker does alongside its pairs: renew its leases, and put back into the queue what was lost.

Three things lose a message: a worker killed with pairs in flight, Redis dying between two commands, and Redis coming
back empty. The database knows the pairs of all three; whichever worker notices first publishes them again.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Collection
from threading import Event, Thread
from typing import Protocol

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.database.claim_rows import renew_claims, take_lost_pairs
from app.database.connection import reading
from app.database.pair_rows import QueuedPair, open_pairs
from app.database.run_rows import Run, runs_of_models
from app.queue.celery_app import KEY_PREFIX, all_queues
from app.queue.publisher import BROKER_AWAY, Broker, Publisher, producing_key
from app.settings import Settings

log = logging.getLogger(__name__)

_AGAIN_AFTER_S = 30.0  # before a pair that was put back is put back once more
_REFILL = 2_000  # pairs put back at once when the queue was lost: a small Redis stays small
_COMPLETE_FOR_S = 300.0  # a run in which nothing was left to put back is not searched again before
_AFTER_FAILURE_S = 2.0  # until the next try where Redis or the database was away
_STALLED_AFTER_S = 60.0  # a worker that takes nothing for so long, while messages wait, does not hear any more
_STALLED_AFTER_SWEEPS = 6  # but it is looked at once a sweep: a slow one may catch a healthy worker between two pairs


class Work(Protocol):
    """What maintenance asks of and tells the process's pairs (``workers.pair_runner.PairRunner``)."""

    def held(self) -> list[int]:
        """The pairs whose leases must be renewed."""
        ...

    def in_flight(self) -> int:
        """Messages in flight."""
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
        *,
        worker: str,
        model_keys: Collection[str],
        when_stalled: Callable[[], None],
    ) -> None:
        """``when_stalled`` is called when messages wait and none has come for a minute: the process had better end."""
        self._settings = settings
        self._work = work
        self._when_stalled = when_stalled
        self._heard = time.monotonic()
        self._database = database
        self._broker = broker
        self._worker = worker
        self._model_keys = model_keys
        self._stopping = Event()
        self._idle_sweeps = 0
        self._complete: dict[tuple[str, int], float] = {}

    def start(self) -> None:
        """Begin both."""
        self._every(self._settings.lease_s / 4, self._renew, "renew leases")
        self._every(self._settings.sweep_s, self.sweep, "sweep")

    def stop(self) -> None:
        """End both; leases are renewed no more."""
        self._stopping.set()

    def sweep(self) -> int:
        """Publish what was lost; gives how many pairs."""
        with reading(self._database) as connection:
            runs = runs_of_models(connection, self._model_keys)
        takeover = self._work.may_take_over()
        lost = take_lost_pairs(self._database, runs, again_after_s=_AGAIN_AFTER_S, takeover=takeover)
        for run in runs:
            mine = [pair for owner, pair in lost if owner.id == run.id]
            if mine:
                log.warning("run %s: requeued %d orphaned pairs (lease expired or worker gone)", run.name, len(mine))
                self._publish(run, mine, again=True)
        return len(lost) + self._refill(runs)

    def _renew(self) -> None:
        renew_claims(self._database, self._worker, self._settings.lease_s, self._work.held())

    def _refill(self, runs: list[Run]) -> int:
        """With all queues empty and pairs left, messages were lost: put some of those pairs back."""
        shards = self._settings.queue_shards
        queues = [name for key in self._model_keys for name in all_queues(key, shards)]
        waiting = self._broker.waiting(queues)
        self._listen(waiting)
        self._idle_sweeps = 0 if waiting else self._idle_sweeps + 1
        if self._idle_sweeps < 2:  # a message may be on its way from the queue to a worker
            return 0
        return sum(self._refill_run(run) for run in runs)

    def _listen(self, waiting: int) -> None:
        """A consumer that came out of a reconnection stalled (celery#8030) is cured by a new process alone."""
        present = time.monotonic()
        limit = max(_STALLED_AFTER_S, _STALLED_AFTER_SWEEPS * self._settings.sweep_s)
        if not waiting or self._work.in_flight():
            self._heard = present
        elif present - self._heard > limit:
            self._when_stalled()

    def _refill_run(self, run: Run) -> int:
        server = self._broker.redis
        seen = (run.uuid, run.expected)
        if time.monotonic() - self._complete.get(seen, float("-inf")) < _COMPLETE_FOR_S:
            return 0
        if server.exists(producing_key(run)):
            return 0
        if not server.set(f"{KEY_PREFIX}refill:{run.uuid}", 1, nx=True, ex=int(_AGAIN_AFTER_S)):
            return 0  # another worker is at it
        page = next(open_pairs(self._database, run, unclaimed=True, page=_REFILL), [])
        if not page:
            self._complete[seen] = time.monotonic()
            return 0
        log.warning("run %s: the queue was lost: requeued %d pending pairs", run.name, len(page))
        return self._publish(run, page)

    def _publish(self, run: Run, pairs: list[QueuedPair], *, again: bool = False) -> int:
        return Publisher(self._broker, run, self._settings.queue_shards).publish(pairs, again=again)

    def _every(self, seconds: float, action: Callable[[], object], name: str) -> None:
        def loop() -> None:
            # Workers that were started together must not ask together.
            pause = seconds
            while not self._stopping.wait(pause * random.uniform(0.75, 1.25)):
                pause = seconds
                try:
                    action()
                except (DBAPIError, PoolTimeout) as error:
                    self._work.note_database_away()
                    log.warning("cannot %s, retrying: the database is away (%s)", name, type(error).__name__)
                    pause = min(seconds, _AFTER_FAILURE_S)
                except BROKER_AWAY as error:
                    self._heard = time.monotonic()
                    log.warning("cannot %s, retrying: Redis is away (%s)", name, type(error).__name__)
                    pause = min(seconds, _AFTER_FAILURE_S)

        Thread(target=loop, name=name, daemon=True).start()
