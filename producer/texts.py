"""The descriptions that an enqueue asks for, by how they are to be had."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Texts:
    """The descriptions of a run's pending pairs, as they are to be had."""

    new: int = 0
    reused: int = 0  # copied, now or by the worker
    to_check: int = 0  # of images that nobody has read as they are now
    copied: int = 0  # pairs that got their result from copies alone
