"""Which GPUs there are, and one process's share of one."""

from __future__ import annotations

import os
import shutil
import subprocess

from app.settings import Settings

SHARE = 0.8
"""Of a GPU's memory, divided by the workers on it: contexts and workspaces of CUDA take the rest."""


def visible_gpus() -> list[str]:
    """The GPUs that this machine lends us, as CUDA_VISIBLE_DEVICES would name them; none without a driver.

    The launcher asks the driver's tool and not torch: a parent that has touched CUDA cannot fork, and loading torch
    takes seconds.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    lines = [line for line in listing.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(lines))] if listing.returncode == 0 else []


def memory_fraction(workers_per_gpu: int) -> float:
    """What one of so many workers on a GPU may use of its memory."""
    return SHARE / workers_per_gpu


def limit_memory(settings: Settings) -> None:
    """Hold this process to its share of its GPU, before the first allocation. Nothing on a CPU."""
    import torch

    if settings.device == "cpu" or not torch.cuda.is_available():
        return
    torch.cuda.set_per_process_memory_fraction(settings.memory_fraction or SHARE)
