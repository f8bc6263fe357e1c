"""One team of OpenMP threads in a process: the engine's.

torch's OpenMP library (GNU's) lets idle threads wait awake for the next product, but puts them to sleep at once when
it counts more threads than cores, over all threads that ever ran a product. Waking them costs 50 us, for each of the
hundred products of a step: so the threads that load models and images must not keep a team of their own.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch

SOFT = 1  # omp_pause_soft of OpenMP 5.0: threads go, settings stay
LARGE = 2**16  # elements, of which torch lets several threads do their share


@cache
def openmp() -> ctypes.CDLL | None:
    """torch's OpenMP library, its functions visible to libraries loaded later; None where it is not GNU's."""
    try:
        mapped = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    paths = {line.split(maxsplit=5)[5] for line in mapped if "/libgomp" in line}
    return ctypes.CDLL(paths.pop(), mode=ctypes.RTLD_GLOBAL) if len(paths) == 1 else None


def release_team() -> None:
    """Let the calling thread's idle OpenMP threads go; they come back when it needs them."""
    pause = getattr(openmp(), "omp_pause_resource_all", None)
    if pause is not None:
        pause(SOFT)


def without_team() -> None:
    """Let the calling thread compute alone from now on."""
    library = openmp()
    if library is not None:
        torch.zeros(LARGE).neg_()  # torch sets a new thread's number with its first large product, and not again
        release_team()
        library.omp_set_num_threads(1)
