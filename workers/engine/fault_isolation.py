"""The batch boundary: the one place where an error of a batch becomes the error of the requests that cause it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from workers.engine.api import DeviceLost

Item = TypeVar("Item")

# What CUDA says once its context is gone; every later call fails the same way, so only a new process helps.
_FATAL = (
    "illegal memory access",
    "device-side assert",
    "unspecified launch failure",
    "misaligned address",
    "uncorrectable ECC",
    "hardware stack error",
    "illegal instruction",
    "device is lost",
    "GPU has fallen off the bus",
    "context is destroyed",
    "unknown error",
)


def bisect_batch(
    work: Callable[[Sequence[Item]], None],
    items: Sequence[Item],
    fail: Callable[[Item, Exception], None],
    *,
    raise_memory: bool = False,
) -> None:
    """Run ``work`` over ``items``; where it raises, halve them until the culprit is alone, and ``fail`` that one.

    ``work`` must be repeatable for the items it did not finish. Raises as ``attempt`` does.
    """
    if not items:
        return
    error = attempt(lambda: work(items), raise_memory=raise_memory)
    if error is None:
        return
    if len(items) == 1:
        fail(items[0], error)
        return
    half = len(items) // 2
    bisect_batch(work, items[:half], fail, raise_memory=raise_memory)
    bisect_batch(work, items[half:], fail, raise_memory=raise_memory)


def attempt(work: Callable[[], object], *, raise_memory: bool = False) -> Exception | None:
    """Run ``work``; gives what it raised.

    A lost device is raised on, as ``DeviceLost``; with ``raise_memory`` so is running out of memory, for a caller that
    has better means than leaving something out.
    """
    try:
        work()
    except Exception as error:  # whatever one prompt or image provokes must not touch the others
        if is_device_lost(error):
            raise DeviceLost(f"the device failed for good: {error}") from error
        if raise_memory and is_out_of_memory(error):
            raise
        return error
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, the device's or the host's: torch has an error of its own for the first alone."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def is_device_lost(error: BaseException) -> bool:
    """Whether the device cannot be used again by this process."""
    if isinstance(error, DeviceLost):
        return True
    if isinstance(error, torch.OutOfMemoryError):
        return False
    accelerator = getattr(torch, "AcceleratorError", None)  # torch 2.8 and up raise it for CUDA's own errors
    text = str(error)
    from_cuda = "CUDA error" in text or (accelerator is not None and isinstance(error, accelerator))
    return from_cuda and any(sign.lower() in text.lower() for sign in _FATAL)
