"""Every name in Redis.

A run's pairs lie in lists of its own, so that priority is the order in which lists are looked at, a paused run's lists
are passed over, and a cancelled one's are deleted. A list's name is ``model/run/shard``: the model's fingerprint, the
run, and a number that all pairs of an image share.
"""

from __future__ import annotations

PREFIX = "farm:"
"""Before every key, so that one server serves others too."""

TRANSPORT = "redis"
"""What kombu calls our transport: its own for Redis has the same name, because Flower asks for that by name."""

TASK = "workers.process.describe_pair"
"""The one task; its arguments are (run uuid, pair id)."""

EPOCH = f"{PREFIX}epoch"
"""Holds a uuid for as long as the queue has not been lost."""

DEAD_LETTERS = f"{PREFIX}dead-letters"
"""A bounded list of what was in a queue and could not be read."""

_REDELIVERY = "redelivery"


def run_lists(model_key: str, run_uuid: str, shards: int) -> list[str]:
    """A run's lists: first that of the pairs to be delivered again, then the shards."""
    return [redelivery_list(model_key, run_uuid), *shard_lists(model_key, run_uuid, shards)]


def shard_lists(model_key: str, run_uuid: str, shards: int) -> list[str]:
    """A run's shards: an image's pairs all go to one of them, so that they reach one worker."""
    return [f"{_run(model_key, run_uuid)}/{shard}" for shard in range(shards)]


def redelivery_list(model_key: str, run_uuid: str) -> str:
    """The list of a run's pairs that were started and lost: every worker looks into it before any shard.

    In their own shard they would wait until somebody drains it, which may be hours.
    """
    return f"{_run(model_key, run_uuid)}/{_REDELIVERY}"


def redelivery_of(name: str) -> str:
    """The redelivery list of the run that a list belongs to; the list itself where it is none of ours."""
    run, slash, _ = name.rpartition("/")
    return f"{run}/{_REDELIVERY}" if slash and "/" in run else name


def is_redelivery(name: str) -> bool:
    """Whether this is a run's redelivery list."""
    return name.endswith(f"/{_REDELIVERY}")


def draining(name: str) -> str:
    """The key that says who drains a shard."""
    return f"draining:{name}"


def quarantined(name: str) -> str:
    """The key to which one is renamed that has a queue's name and is no list."""
    return f"quarantined:{name}"


def _run(model_key: str, run_uuid: str) -> str:
    return f"{model_key}/{run_uuid[:13]}"
