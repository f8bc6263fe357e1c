"""The window of a run that Redis holds: topped up from the database, which is the queue of record."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable
from functools import partial

from sqlalchemy import Engine

from app.database.claim_rows import take_orphans
from app.database.connection import patiently, reading
from app.database.pair_rows import pending_after
from app.database.publish_rows import advance, begin_publishing, end_publishing
from app.database.records import QueuedPair, Run
from app.queue import keys
from app.queue.publisher import Broker, Publisher

WINDOW = 50_000  # messages of a run at least, so that an ordinary run is published whole
AGAIN_AFTER_S = 30.0  # before a pair that was put back is put back once more
_PAGE = 5_000
_LEASE_S = 60.0


class Window:
    """Publishes runs for one process."""

    def __init__(self, database: Engine, broker: Broker, shards: int, *, patience_s: float = 0.0) -> None:
        """A database that is away while a page is read is waited for as long as ``patience_s``."""
        self._database, self._broker, self._shards, self._patience_s = database, broker, shards, patience_s
        self._name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"

    def waiting(self, run: Run) -> int:
        """Messages of the run that no worker has taken."""
        return self._broker.waiting(keys.run_lists(run.model_key, run.uuid, self._shards))

    def top_up(self, run: Run, room: int, advanced: Callable[[int], object] = lambda _: None) -> tuple[int, int | None]:
        """Publish up to ``room`` of the run's pairs that are not in the queue.

        Gives how many, and the mark in the run if it was reached without finding more (None otherwise).
        ``advanced`` is called with each number of pairs that are in Redis.
        """
        epoch = self._broker.patiently(self._broker.epoch)
        upto = begin_publishing(self._database, run, epoch, self._name, _LEASE_S)
        if upto is None:
            return 0, None
        publisher, published = Publisher(self._broker, run, self._shards), 0
        try:
            while published < room:
                page = min(_PAGE, room - published)
                found = patiently(partial(self._pending, run, upto, page), self._patience_s)
                if not found:
                    return published, upto
                published += publisher.publish(found)
                upto = found[-1].id
                if not advance(self._database, run, self._name, upto, _LEASE_S):
                    return published, None
                advanced(len(found))
            return published, None
        finally:
            end_publishing(self._database, run, self._name)

    def _pending(self, run: Run, after: int, limit: int) -> list[QueuedPair]:
        with reading(self._database) as connection:  # a short read: nothing is held open over a publication of hours
            return pending_after(connection, run, after, limit)

    def return_orphans(self, runs: list[Run], *, takeover: bool = True) -> dict[str, int]:
        """Publish what was given out and is in nobody's hands; run name -> how many pairs.

        What waits for longer than ``AGAIN_AFTER_S`` to be delivered again, behind slow workers, gets no second message.
        """
        waiting = [run.id for run in runs if self._broker.waiting([keys.redelivery_list(run.model_key, run.uuid)])]
        orphans = take_orphans(self._database, runs, again_after_s=AGAIN_AFTER_S, takeover=takeover, waiting=waiting)
        returned = {}
        for run in runs:
            mine = [pair for owner, pair in orphans if owner.id == run.id]
            if mine:
                returned[run.name] = Publisher(self._broker, run, self._shards).publish(mine, again=True)
        return returned


def window_of(run: Run, rate: float = 0.0) -> int:
    """How many messages of a run Redis should hold: ten minutes of work at ``rate`` pairs a second, or its own wish."""
    wished = run.options.get("window")
    return int(wished) if wished else max(WINDOW, int(600 * rate))
