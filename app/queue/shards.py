"""Which list a worker drains next, so that an image's pairs reach one worker and no worker idles.

What is computed per image (its features, the shared prefix) is shared inside one process only. An image's pairs stand
together in one of a run's many lists (shards). A worker drains one shard at a time and says so in Redis by a lease;
others pass it by as long as a shard is left that nobody drains. Then, and only when it runs low itself, a worker helps
at another's: at one that has been drained for a while, for one that was just started is most often drained at once.

kombu asks for an order of the lists before each BRPOP, Redis takes the first that holds something, and kombu tells
which one gave. That is all there is to hook into, and it suffices: runs are served in the order of ``Served``.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import redis

from app.queue import keys

_LINGER_S = 1.0  # how long a shard that ran empty is still ours: the rest of its last image may be on its way
_VIEW_S = 0.05  # how old the view of others' leases may be: two that take a shard at once both compute its images
_HELP_AFTER_S = 1.0  # another must have drained a shard for so long before help is worth its images' second computing
_PROCESS = uuid.uuid4().hex  # one for all connections: after a reconnection the leases are still this worker's

# Prolong or delete a lease only if it is ours: it may have run out and be another's by now.
_IF_OURS = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call(ARGV[2], KEYS[1], unpack(ARGV, 3)) end"


class Served:
    """The lists that a worker process looks into, run by run; set by one thread and read by another.

    They stand for ``queue``, the one that its consumer declares. Who consumes something else on the same connection
    (Celery's replies to a worker that says hello) gets nothing of them.
    """

    def __init__(self) -> None:
        self.queue = ""
        self.runs: tuple[tuple[str, ...], ...] = ()

    def __json__(self) -> list[list[str]]:
        """For kombu: a worker that is asked for its configuration tells of this, too."""
        return [list(lists) for lists in self.runs]

    def set(self, runs: Sequence[Sequence[str]]) -> None:
        """Serve these runs, in this order, from the next message on."""
        self.runs = tuple(map(tuple, runs))


class Leases(Protocol):
    """Who drains which shard."""

    def taken(self, shards: Sequence[str]) -> dict[str, bytes]:
        """Those of the shards that other workers drain, and who does."""
        ...

    def take(self, shard: str) -> bool:
        """Try to make it ours."""
        ...

    def renew(self, shard: str) -> None:
        """Keep it ours."""
        ...

    def release(self, shard: str) -> None:
        """Leave it to others."""
        ...


class RedisLeases:
    """Leases as keys that run out by themselves when their worker dies."""

    def __init__(self, client: Callable[[], Any], prefix: str, worker: str = _PROCESS, *, lease_s: int) -> None:
        self._client = client  # gives a context manager of a Redis client without key prefix
        self._prefix = prefix
        self._me = worker
        self._lease_s = lease_s

    def taken(self, shards: Sequence[str]) -> dict[str, bytes]:
        """As ``Leases`` says."""
        with self._client() as client:
            holders = client.mget([self._key(shard) for shard in shards])
        held = zip(shards, holders, strict=True)
        return {shard: holder for shard, holder in held if holder not in (None, self._me.encode())}

    def take(self, shard: str) -> bool:
        """As ``Leases`` says."""
        with self._client() as client:
            try:
                if client.set(self._key(shard), self._me, nx=True, ex=self._lease_s):
                    return True
            except redis.exceptions.OutOfMemoryError:
                return True  # full, and to be drained: that two may share images matters less
            return bool(client.get(self._key(shard)) == self._me.encode())  # from before a reconnection

    def renew(self, shard: str) -> None:
        """As ``Leases`` says."""
        with self._client() as client:
            client.eval(_IF_OURS, 1, self._key(shard), self._me, "expire", self._lease_s)

    def release(self, shard: str) -> None:
        """As ``Leases`` says."""
        with self._client() as client:
            client.eval(_IF_OURS, 1, self._key(shard), self._me, "del")

    def _key(self, shard: str) -> str:
        return self._prefix + keys.draining(shard)


class QueueCycle:
    """kombu's queue cycle (update, consume, rotate) over the runs that are served.

    Without ``served`` the queues that the consumer declared are one run's lists. ``low`` tells whether this worker
    wants more work.
    """

    def __init__(self, leases: Leases, low: Callable[[], bool], served: Served | None = None) -> None:
        self._leases, self._low, self._served = leases, low, served
        self._declared: tuple[str, ...] = ()
        self._runs: dict[tuple[str, ...], ShardCycle] = {}

    def update(self, queues: Sequence[str]) -> None:
        """Take the queues that the consumer declares."""
        self._declared = tuple(queues)

    def consume(self, _number: int) -> list[str]:
        """The order to look in: run by run, each as its shards are drained."""
        if self._served is not None and self._served.queue not in self._declared:
            return list(self._declared)
        self._follow()
        order = [name for cycle in self._runs.values() for name in cycle.consume()]
        return order or list(self._declared[:1])  # nothing to serve: wait where nothing comes

    def rotate(self, name: str) -> str:
        """Note which list gave a message."""
        for lists, cycle in self._runs.items():
            if name in lists:
                cycle.rotate(name)
        return name

    def renew(self) -> None:
        """Keep the leases; to be called more often than they run out, for a worker that is full asks for no order."""
        for cycle in self._runs.values():
            cycle.renew()

    def _follow(self) -> None:
        wanted = self._served.runs if self._served is not None else (self._declared,)
        if tuple(self._runs) == wanted:
            return
        before = self._runs
        self._runs = {
            lists: before.pop(lists) if lists in before else ShardCycle(self._leases, self._low, lists)
            for lists in wanted
        }
        for cycle in before.values():
            cycle.leave_all()


class ShardCycle:
    """One run's lists in the order in which this worker drains them."""

    def __init__(self, leases: Leases, low: Callable[[], bool], lists: Sequence[str]) -> None:
        self._leases = leases
        self._low = low
        self._redelivery = [name for name in lists if keys.is_redelivery(name)]
        self._shards = [name for name in lists if not keys.is_redelivery(name)]
        random.shuffle(self._shards)  # workers that start together start at different ends
        self._current: str | None = None
        self._ours: dict[str, float] = {}  # the shards that we drain, and when each last gave something
        self._taken: dict[str, tuple[bytes, float]] = {}  # by whom, and since when we know
        self._looked = float("-inf")

    def consume(self) -> list[str]:
        """The shard at hand, our others, those that nobody drains, others' if this worker runs low."""
        if not self._shards:
            return list(self._redelivery)
        if time.monotonic() - self._looked > _VIEW_S:
            self._look()
        first = [] if self._current is None else [self._current]
        first += [shard for shard in reversed(self._ours) if shard != self._current]
        rest = [shard for shard in self._shards if shard not in first]
        free = [shard for shard in rest if shard not in self._taken]
        others = self._worth_helping(rest) if self._low() else []
        return self._redelivery + first + free + others

    def rotate(self, shard: str) -> None:
        """Note which shard gave a message."""
        if shard in self._redelivery:
            return
        now = time.monotonic()
        if shard in self._ours:
            self._current, self._ours[shard] = shard, now
        elif shard != self._current:
            self._leave(now)
            self._begin(shard, now)

    def renew(self) -> None:
        """Keep the leases."""
        for shard in self._ours:
            self._leases.renew(shard)

    def leave_all(self) -> None:
        """Give up every shard: the run is served no more."""
        self._leave(float("inf"))

    def _begin(self, shard: str, now: float) -> None:
        helping = shard in self._taken
        ours = not helping and self._leases.take(shard)
        # A shard that another took in the same moment is left again: two would go on sharing its images.
        self._current = shard if helping or ours else None
        if ours:
            self._ours[shard] = now
        else:
            self._taken.setdefault(shard, (b"", now))
            self._looked = float("-inf")

    def _leave(self, now: float) -> None:
        """Give up our shards, for they were all empty: but none just started, whose images may still be published."""
        for shard in [shard for shard, last in self._ours.items() if now - last > _LINGER_S]:
            self._leases.release(shard)
            del self._ours[shard]

    def _look(self) -> None:
        """See again who drains what."""
        now, before = time.monotonic(), self._taken
        held = self._leases.taken(self._shards).items()
        self._taken = {
            shard: before[shard] if shard in before and before[shard][0] == holder else (holder, now)
            for shard, holder in held
        }
        self._ours = {shard: last for shard, last in self._ours.items() if shard not in self._taken}
        self._looked = now

    def _worth_helping(self, shards: Sequence[str]) -> list[str]:
        long_ago = time.monotonic() - _HELP_AFTER_S
        return [shard for shard in shards if shard in self._taken and self._taken[shard][1] < long_ago]
