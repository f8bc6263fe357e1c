"""What was in a queue and could not be read: the newest of it in a list of Redis, all of it counted by its reason."""

from __future__ import annotations

import json
import logging
import time

import redis

from app.queue import keys

log = logging.getLogger(__name__)

KEPT = 1000
"""Of the newest, so that a flood of garbage does not fill Redis."""
_SHOWN_BYTES = 2000
_COUNTS = f"{keys.DEAD_LETTERS}/counts"


def bury(client: redis.Redis, element: bytes, list_name: str, reason: str) -> None:
    """Note an element that was taken from a list and is not put back. Raises redis.ConnectionError."""
    log.warning("dead letter: an element of %s is no task message (%s, %d bytes)", list_name, reason, len(element))
    shown = element[:_SHOWN_BYTES].decode("utf-8", "backslashreplace")
    letter = {"at": round(time.time(), 3), "list": list_name, "reason": reason, "bytes": len(element), "begins": shown}
    try:
        with client.pipeline() as pipeline:
            pipeline.hincrby(_COUNTS, reason, 1)
            pipeline.lpush(keys.DEAD_LETTERS, json.dumps(letter))
            pipeline.ltrim(keys.DEAD_LETTERS, 0, KEPT - 1)
            pipeline.execute()
    except redis.ResponseError as error:  # full, say: what is dropped must not hold up what is good
        log.warning("the dead letter is in this log alone: %s", error)


def buried(client: redis.Redis) -> int:
    """How many elements were ever buried, of which the newest are in the list."""
    return sum(map(int, client.hvals(_COUNTS)))
