"""Random numbers by seed and step, and what is drawn by them."""

from __future__ import annotations

import numpy as np
import torch

from workers.engine.sampling import choose, uniforms


def test_uniform_numbers_depend_on_seed_and_step_alone() -> None:
    seeds, steps = np.array([1, 1, 2, 2**63], np.uint64), np.array([0, 1, 0, 0], np.uint64)
    numbers = uniforms(seeds, steps)
    assert len(set(numbers)) == 4
    assert (uniforms(seeds[2:3], steps[2:3]) == numbers[2]).all()
    many = uniforms(np.arange(10_000, dtype=np.uint64), np.zeros(10_000, np.uint64))
    assert abs(many.mean() - 0.5) < 0.02
    assert 0 <= many.min() < many.max() < 1


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, -torch.inf, 2.0]).expand(20_000, 4)
    numbers = torch.from_numpy(uniforms(np.arange(20_000, dtype=np.uint64), np.zeros(20_000, np.uint64)))
    drawn = choose(logits, torch.full((20_000,), 0.5), numbers).bincount(minlength=4) / 20_000
    expected = torch.softmax(logits[0] / 0.5, dim=0)
    assert torch.allclose(drawn, expected, atol=0.02)
    assert drawn[2] == 0


def test_rows_of_no_temperature_are_greedy_among_others() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [0.0, 3.0, 1.0]])
    numbers = torch.tensor([0.0, 0.0], dtype=torch.float64)
    assert choose(logits, torch.tensor([0.0, 100.0]), numbers).tolist() == [1, 0]
