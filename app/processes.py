"""Child processes that do not outlive their parents, and the GPUs that they may be given."""

from __future__ import annotations

import os
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """Run in a child before it becomes another program: on Linux it then gets this signal when its parent dies.

    However the parent ended, no orphan holds a GPU. (The parent's thread that started it counts: start children from
    a thread that lives as long as the process.)
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of ours in this Python; its environment needs ``python_path`` in it.

    ``-P``: the current folder is not on the path, where an ``app`` or a ``workers.py`` would stand in place of ours.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def python_path() -> dict[str, str]:
    """The variable with which a child finds the same packages as this process, in a checkout as in an installation."""
    ours = Path(__file__).resolve().parents[1]
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    paths |= {*site.getsitepackages(), site.getusersitepackages()}
    if ours in {Path(path).resolve() for path in paths}:
        return {}  # it is searched anyway, and must not come before the standard library
    given = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(ours), *([given] if given else [])])}


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
