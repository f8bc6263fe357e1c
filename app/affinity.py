"""Which queue a worker drains next, so that an image's pairs reach one worker and no worker idles.

What is computed per image (picture, shared prefix) is shared inside one process only. An image's pairs stand together
in one of many queues (shards). A worker drains one shard at a time and says so in Redis by a lease; others pass it by
as long as a shard is left that nobody drains. Then, and only when it runs low itself, a worker helps at another's.

kombu asks for an order of the queues before each BRPOP, Redis takes the first that holds something, and kombu tells
which one gave. That is all there is to hook into, and it suffices.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Protocol

_AGAIN = ".again"
_LEASE_S = 15
_RENEW_S = 3.0
_VIEW_S = 0.2  # how old the view of others' leases may be
_PROCESS = uuid.uuid4().hex  # one for all connections: after a reconnection the leases are still this worker's

# Prolong or delete a lease only if it is ours: it may have run out and be another's by now.
_IF_OURS = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call(ARGV[2], KEYS[1], unpack(ARGV, 3)) end"


def again_queue(model_key: str) -> str:
    """The queue of a model's pairs that were begun and lost: every worker looks into it before any shard.

    In their own shard they would wait until somebody drains it, which may be hours.
    """
    return model_key + _AGAIN


class Leases(Protocol):
    """Who drains which shard."""

    def taken(self, shards: Sequence[str]) -> set[str]:
        """Those of the shards that other workers drain."""
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

    def __init__(self, client: Callable[[], Any], prefix: str, worker: str = _PROCESS) -> None:
        self._client = client  # gives a context manager of a Redis client without key prefix
        self._prefix = f"{prefix}draining:"
        self._me = worker

    def taken(self, shards: Sequence[str]) -> set[str]:
        """As ``Leases`` says."""
        with self._client() as client:
            holders = client.mget([self._prefix + shard for shard in shards])
        return {shard for shard, holder in zip(shards, holders, strict=True) if holder not in (None, self._me.encode())}

    def take(self, shard: str) -> bool:
        """As ``Leases`` says."""
        with self._client() as client:
            return bool(client.set(self._prefix + shard, self._me, nx=True, ex=_LEASE_S))

    def renew(self, shard: str) -> None:
        """As ``Leases`` says."""
        with self._client() as client:
            client.eval(_IF_OURS, 1, self._prefix + shard, self._me, "expire", _LEASE_S)

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
        self._again: list[str] = []
        self._current: str | None = None
        self._ours = False
        self._taken: set[str] = set()
        self._looked = self._renewed = float("-inf")

    def update(self, shards: Sequence[str]) -> None:
        """Take a new set of queues."""
        self._again = [name for name in shards if name.endswith(_AGAIN)]
        shards = [name for name in shards if not name.endswith(_AGAIN)]
        known = set(self._shards)
        new = [shard for shard in shards if shard not in known]
        random.shuffle(new)  # workers that begin together begin at different ends
        self._shards = [shard for shard in self._shards if shard in set(shards)] + new

    def consume(self, _number: int) -> list[str]:
        """The order to look in: the shard at hand, those that nobody drains, others' if this worker runs low."""
        if not self._shards:
            return []
        if time.monotonic() - self._looked > _VIEW_S:
            self._taken = self._leases.taken(self._shards)
            self._looked = time.monotonic()
        first = [self._current] if self._current is not None else []
        rest = [shard for shard in self._shards if shard != self._current]
        free = [shard for shard in rest if shard not in self._taken]
        others = [shard for shard in rest if shard in self._taken] if self._low() else []
        return self._again + ((first + free + others) or self._shards[:1])

    def rotate(self, shard: str) -> str:
        """Note which shard gave a message."""
        if shard in self._again:
            return shard
        if shard == self._current:
            if self._ours and time.monotonic() - self._renewed > _RENEW_S:
                self._leases.renew(shard)
                self._renewed = time.monotonic()
            return shard
        if self._current is not None and self._ours:
            self._leases.release(self._current)
        helping = shard in self._taken
        self._ours = not helping and self._leases.take(shard)
        # A shard that another took in the same moment is left again: two would go on sharing its images.
        self._current = shard if helping or self._ours else None
        self._taken |= set() if self._ours else {shard}
        self._renewed = time.monotonic()
        return shard
