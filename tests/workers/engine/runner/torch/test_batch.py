"""How chunks of prompts are padded to attend together."""

from __future__ import annotations

import numpy as np
import pytest

from workers.engine.runner.torch.batch import CAUSAL_SCORES, similar_lengths


@pytest.mark.parametrize("lengths", [[420] * 60, [15] * 540 + [527], [100, 1, 7, 3, 100, 2000], [1]])
def test_recovery_pads_little_and_bounds_its_scores(lengths: list[int]) -> None:
    batches = similar_lengths(np.array(lengths))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        alike = [lengths[at] for at in batch]
        assert max(alike) <= 2 * min(alike)
        assert len(alike) == 1 or len(alike) * max(alike) ** 2 <= CAUSAL_SCORES
    assert sum(max(lengths[at] for at in batch) * len(batch) for batch in batches) <= 2 * sum(lengths)
