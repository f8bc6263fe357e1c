"""Which queue a worker drains next, so that an image's pairs reach one worker and no worker idles.

What is computed per image (image, shared prefix) is shared inside one process only. An image's pairs stand together
in one of many queues (shards). A worker drains one shard at a time and says so in Redis by a lease; others pass it by
as long as a shard is left that nobody drains. Then, and only when it runs low itself, a worker helps at another's: at
one that has been drained for a while, for one that was just started is most often drained at once.

kombu asks for an order of the queues before each BRPOP, Redis takes the first that holds something, and kombu tells
which one gave. That is all there is to hook into, and it suffices.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Protocol

_REDELIVERY = ".redelivery"
_LINGER_S = 1.0  # how long a shard that ran empty is still ours: the rest of its last image may be on its way
_VIEW_S = 0.05  # how old the view of others' leases may be: two that take a shard at once both compute its images
_HELP_AFTER_S = (
    1.0  # how long another must have been draining a shard before help is worth its images' second computing
)
_PROCESS = uuid.uuid4().hex  # one for all connections: after a reconnection the leases are still this worker's

# Prolong or delete a lease only if it is ours: it may have run out and be another's by now.
_IF_OURS = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call(ARGV[2], KEYS[1], unpack(ARGV, 3)) end"


def redelivery_queue(model_key: str) -> str:
    """The queue of a model's pairs that were started and lost: every worker looks into it before any shard.

    In their own shard they would wait until somebody drains it, which may be hours.
    """
    return model_key + _REDELIVERY


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
        self._prefix = f"{prefix}draining:"
        self._me = worker
        self._lease_s = lease_s

    def taken(self, shards: Sequence[str]) -> dict[str, bytes]:
        """As ``Leases`` says."""
        with self._client() as client:
            holders = client.mget([self._prefix + shard for shard in shards])
        held = zip(shards, holders, strict=True)
        return {shard: holder for shard, holder in held if holder not in (None, self._me.encode())}

    def take(self, shard: str) -> bool:
        """As ``Leases`` says."""
        with self._client() as client:
            if client.set(self._prefix + shard, self._me, nx=True, ex=self._lease_s):
                return True
            return bool(client.get(self._prefix + shard) == self._me.encode())  # from before a reconnection

    def renew(self, shard: str) -> None:
        """As ``Leases`` says."""
        with self._client() as client:
            client.eval(_IF_OURS, 1, self._prefix + shard, self._me, "expire", self._lease_s)

    def release(self, shard: str) -> None:
        """As ``Leases`` says."""
        with self._client() as client:
            client.eval(_IF_OURS, 1, self._prefix + shard, self._me, "del")


class ShardCycle:
    """kombu's queue cycle (update, consume, rotate) with leases; ``low`` tells whether this worker wants more work."""

    def __init__(self, leases: Leases, low: Callable[[], bool]) -> None:
        self._leases = leases
        self._low = low
        self._shards: list[str] = []
        self._redelivery: list[str] = []
        self._current: str | None = None
        self._ours: dict[str, float] = {}  # the shards that we drain, and when each last gave something
        self._taken: dict[str, tuple[bytes, float]] = {}  # by whom, and since when we know
        self._looked = float("-inf")

    def update(self, shards: Sequence[str]) -> None:
        """Take a new set of queues."""
        self._redelivery = [name for name in shards if name.endswith(_REDELIVERY)]
        shards = [name for name in shards if not name.endswith(_REDELIVERY)]
        known = set(self._shards)
        new = [shard for shard in shards if shard not in known]
        random.shuffle(new)  # workers that begin together begin at different ends
        self._shards = [shard for shard in self._shards if shard in set(shards)] + new

    def consume(self, _number: int) -> list[str]:
        """The order to look in: the shard at hand, our others, those that nobody drains, others' if this worker runs
        low.
        """
        if not self._shards:
            return []
        if time.monotonic() - self._looked > _VIEW_S:
            self._look()
        first = [] if self._current is None else [self._current]
        first += [shard for shard in reversed(self._ours) if shard != self._current]
        rest = [shard for shard in self._shards if shard not in first]
        free = [shard for shard in rest if shard not in self._taken]
        others = self._worth_helping(rest) if self._low() else []
        return self._redelivery + ((first + free + others) or self._shards[:1])

    def rotate(self, shard: str) -> str:
        """Note which shard gave a message."""
        if shard in self._redelivery:
            return shard
        now = time.monotonic()
        if shard in self._ours:
            self._current, self._ours[shard] = shard, now
        elif shard != self._current:
            self._leave(now)
            self._begin(shard, now)
        return shard

    def renew(self) -> None:
        """Keep the leases; to be called more often than they run out, for a worker that is full asks for no order."""
        for shard in self._ours:
            self._leases.renew(shard)

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
