"""Random numbers by seed and step, and what is drawn by them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from workers.engine.api import NO_TOKEN, SamplingParams, Written
from workers.engine.sampling import adjusted, choose, uniforms


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


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_without_numbers_gets_no_token_and_its_neighbours_do(value: float, dtype: torch.dtype) -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [0.0, value, 1.0], [5.0, 1.0, -torch.inf]], dtype=dtype)
    numbers = torch.tensor([0.5, 0.5, 0.5], dtype=torch.float64)
    assert choose(logits, None, None).tolist() == [1, NO_TOKEN, 0]
    assert choose(logits, torch.tensor([0.0, 0.1, 0.1]), numbers).tolist() == [1, NO_TOKEN, 0]


def test_a_row_of_nothing_but_minus_infinity_gets_no_token() -> None:
    assert choose(torch.full((2, 4), -torch.inf), None, None).tolist() == [NO_TOKEN, NO_TOKEN]


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.9), (5, 1.0), (7, 0.6), (1, 1.0), (0, 1e-6), (200, 0.5)])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_top_k_and_top_p_are_those_of_transformers(top_k: int, top_p: float, temperature: float) -> None:
    torch.manual_seed(top_k)
    logits, no_ids = torch.randn(6, 100), torch.zeros(6, 0, dtype=torch.long)
    params = SamplingParams(temperature, top_k=top_k, top_p=top_p)
    ours = adjusted(logits, [Written(params, (), ())] * 6)
    theirs = TemperatureLogitsWarper(temperature)(no_ids, logits) if temperature != 1 else logits
    theirs = TopKLogitsWarper(top_k)(no_ids, theirs) if top_k else theirs
    theirs = TopPLogitsWarper(top_p)(no_ids, theirs) if top_p < 1 else theirs
    assert torch.equal(ours.isfinite(), theirs.isfinite())
    assert torch.equal(ours[ours.isfinite()], logits[ours.isfinite()])


def test_the_repetition_penalty_is_that_of_transformers_over_prompt_and_output() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 50)
    prompt, output = [3, 3, 8, 40], [8, 9]
    ours = adjusted(logits, [None, Written(SamplingParams(0.0, repetition_penalty=1.3), prompt, output)])
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([[*prompt, *output]]), logits[1:])
    assert torch.allclose(ours[1], theirs[0])
    assert torch.equal(ours[0], logits[0])


def test_the_presence_penalty_is_taken_once_from_what_was_written() -> None:
    logits = torch.zeros(1, 6)
    ours = adjusted(logits, [Written(SamplingParams(0.0, presence_penalty=0.5), [1, 2], [3, 3, 4])])
    assert ours.tolist() == [[0.0, 0.0, 0.0, -0.5, -0.5, 0.0]]
    assert not logits.any(), "the model's own logits are read again"


def test_logits_of_plain_rows_are_not_copied() -> None:
    logits = torch.zeros(2, 6)
    assert adjusted(logits, [None, None]) is logits
