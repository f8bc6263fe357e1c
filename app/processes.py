"""Child processes that do not outlive their parents, and the GPUs that they may be given."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Run in a child before it becomes another program: on Linux it then gets SIGTERM when its parent dies.

    However the parent ended, no orphan holds a GPU. (The parent's thread that started it counts: start children from
    a thread that lives as long as the process.)
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def available_cores() -> int:
    """The CPU cores that this process may use; 1 where the system does not say."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


def visible_gpus() -> list[str]:
    """The GPUs that this machine lends us, as CUDA_VISIBLE_DEVICES would name them; none without a driver.

    The driver's tool is asked and not torch: a parent that has touched CUDA cannot fork, and loading torch takes
    seconds.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    lines = [line for line in listing.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(lines))] if listing.returncode == 0 else []
