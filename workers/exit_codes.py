"""How a worker process ends, and what its supervisor makes of it."""

from __future__ import annotations

import signal
from pathlib import Path

_OOM_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))

EXIT_STALLED = 71
"""How a process ends that gets none of the messages that wait."""

EXIT_DEVICE_LOST = 70
"""How a process ends whose GPU context is gone; the launcher counts it as a crash."""

EXIT_CANNOT_START = 78
"""How a process ends that has no model or no database (EX_CONFIG of sysexits.h)."""

EXIT_HELPER_DIED = 72
"""How a process ends one of whose helper threads died."""


EXIT_NO_NUMBERS = 73
"""How a process ends whose model gives NaN or infinity for every text: started again, it would do the same."""


def describe_exit(code: int) -> str:
    """What an exit code of ``subprocess`` means, as the end of a sentence about the process."""
    if code == EXIT_NO_NUMBERS:
        return f"ended with exit code {code}, for its model gives no numbers"
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was ended by {signal.Signals(-code).name}"


def oom_kills() -> int:
    """How often the kernel has killed for memory, in this container or on this machine; 0 where it does not say."""
    for path in _OOM_COUNTERS:
        try:
            words = [line.split() for line in path.read_text().splitlines()]
        except OSError:
            continue
        counts = [int(line[1]) for line in words if len(line) == 2 and line[0] == "oom_kill"]
        if counts:
            return counts[0]
    return 0
