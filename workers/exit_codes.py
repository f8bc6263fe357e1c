"""How a worker process ends, and what its supervisor makes of it."""

from __future__ import annotations

import signal

EXIT_STALLED = 71
"""How a process ends that gets none of the messages that wait."""

EXIT_DEVICE_LOST = 70
"""How a process ends whose GPU context is gone; the launcher counts it as a crash."""

EXIT_CANNOT_START = 78
"""How a process ends that has no model or no database (EX_CONFIG of sysexits.h)."""

EXIT_HELPER_DIED = 72
"""How a process ends one of whose helper threads died."""


def describe_exit(code: int) -> str:
    """What an exit code of ``subprocess`` means, as the end of a sentence about the process."""
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was ended by {signal.Signals(-code).name}"
