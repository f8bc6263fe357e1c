"""Whether a model and a batch worth running fit a GPU."""

from __future__ import annotations

import pytest

from workers.engine.api import TooLittleMemory
from workers.engine.packed.capacity import GIB, LEAST_ROWS, kv_budget, least_bytes

H100 = int(79.2 * GIB)


def test_a_model_of_8_billion_parameters_leaves_most_of_an_h100_to_keys_and_values() -> None:
    budget = kv_budget(H100, 0.8, int(16.3 * GIB), 147_456)
    assert 38 * GIB < budget < int(0.8 * H100) - int(16.3 * GIB)
    assert budget > 15 * least_bytes(147_456)


def test_a_model_that_leaves_no_room_for_a_batch_is_refused_with_the_sum_and_what_would_fit() -> None:
    with pytest.raises(TooLittleMemory) as refusal:
        kv_budget(H100, 0.8, int(62.1 * GIB), 262_144)
    said = str(refusal.value)
    for part in ("62.1 GiB", "63.4 GiB allowed", f"{LEAST_ROWS} requests", "at most", "FP8", "two GPUs", "vllm"):
        assert part in said


def test_the_smallest_that_fits_is_taken() -> None:
    needed = least_bytes(147_456) + 3 * 2**29
    assert kv_budget(needed + 10 * GIB, 1.0, 10 * GIB, 147_456) >= least_bytes(147_456)
    with pytest.raises(TooLittleMemory):
        kv_budget(needed + 10 * GIB - 2, 1.0, 10 * GIB, 147_456)
