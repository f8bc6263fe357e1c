"""Waiting for a condition, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, TypeVar

Value = TypeVar("Value")

PATIENCE_S = 90.0
"""How long a condition may take on a busy machine before a test gives up."""
_PAUSE_S = 0.05


def wait_for(
    condition: Callable[[], Value | Literal[False] | None],
    what: str,
    seconds: float = PATIENCE_S,
    *,
    unless: Callable[[], bool] = lambda: False,
) -> Value:
    """The condition's first true value. Raises TimeoutError after ``seconds``, or at once where ``unless`` is true."""
    deadline = time.monotonic() + seconds
    while True:
        over = unless()  # asked first: what ends it may have made the condition true before
        if value := condition():
            return value
        if over:
            raise TimeoutError(f"in vain: {what}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        time.sleep(_PAUSE_S)


def comes_true(
    condition: Callable[[], object], seconds: float = PATIENCE_S, *, unless: Callable[[], bool] = lambda: False
) -> bool:
    """Whether the condition comes true in time, and before ``unless`` does."""
    try:
        wait_for(lambda: bool(condition()), "it comes true", seconds, unless=unless)
    except TimeoutError:
        return False
    return True
