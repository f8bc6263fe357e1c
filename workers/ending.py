"""How a launcher's workers end: in order, or at once where somebody is in a hurry."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from threading import Event

log = logging.getLogger(__name__)

_MORE_S = 15.0  # beyond the grace period, for what comes after the last pair
_LOOK_S = 0.05


def end_all(processes: Sequence[subprocess.Popen[bytes]], grace_s: float, hurry: Event) -> None:
    """Have every worker finish its pairs; those that take too long, or all once ``hurry`` is set, are killed."""
    for process in processes:
        process.terminate()
    log.info(
        "stopping: %d workers finish their pairs in flight, for up to %.0f s; a second Ctrl-C or SIGTERM ends them at "
        "once, and what is written of these pairs is lost",
        len(processes), grace_s,
    )  # fmt: skip
    deadline = time.monotonic() + grace_s + _MORE_S
    for process in processes:
        while process.poll() is None and not hurry.is_set() and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        if process.poll() is None:
            log.error("worker process %d %s", process.pid, "is ended" if hurry.is_set() else "does not stop: killed")
            process.kill()
            process.wait()
        end_group(process.pid)


def end_group(pid: int) -> None:
    """End what a worker left behind: vLLM's engine is a process of its own, outlives it, and holds the GPU's memory."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # a worker leads a group of its own
