"""A failing batch is divided; a lost device is not."""

from __future__ import annotations

import pytest
import torch

from workers.engine.api import DeviceLost
from workers.engine.fault_isolation import bisect_batch, is_device_lost


def test_a_failing_batch_is_divided_until_the_culprits_are_alone() -> None:
    done: list[int] = []
    failed: list[int] = []

    def work(items: list[int]) -> None:
        if {3, 6} & set(items):
            raise ValueError("three or six")
        done.extend(items)

    bisect_batch(work, list(range(8)), lambda item, _: failed.append(item))  # type: ignore[arg-type]
    assert (sorted(done), failed) == ([0, 1, 2, 4, 5, 7], [3, 6])


def test_a_lost_device_is_not_divided_but_raised() -> None:
    def work(_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(DeviceLost):
        bisect_batch(work, [1, 2], lambda *_: None)
    assert not is_device_lost(RuntimeError("shape mismatch: illegal memory access pattern"))
    assert not is_device_lost(torch.OutOfMemoryError("CUDA out of memory"))
