"""Drawing the next tokens: greedy, or by the inverse of the cumulative distribution at a number of the token's own.

The number for token ``t`` of a request depends on (seed, t) alone, so what is drawn does not depend on the
rows that happen to share the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(seeds: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Counter-based uniform numbers in [0, 1).

    ``seeds`` and ``steps`` are arrays of any equal shape (uint64); gives float64 of that shape. This is
    splitmix64 (Steele, Lea, Flood 2014) of a state that mixes seed and step, of whose result the upper 53
    bits are used.
    """
    with np.errstate(over="ignore"):  # the arithmetic is modulo 2**64 on purpose
        state = _mix(seeds.astype(np.uint64)) + (steps.astype(np.uint64) + np.uint64(1)) * _GOLDEN
        numbers: np.ndarray = (_mix(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return numbers


def choose(logits: Tensor, temperatures: Tensor | None, numbers: Tensor | None) -> Tensor:
    """Next token of each row: (rows, vocabulary) logits -> (rows,) int64.

    ``temperatures`` (rows,) float32 and ``numbers`` (rows,) float64 are both None when every row is greedy; a
    row whose temperature is 0 is greedy in any case.
    """
    best = logits.argmax(dim=-1)
    if temperatures is None or numbers is None:
        return best
    drawn = draw(logits, temperatures.clamp_min(1e-6), numbers)
    return torch.where(temperatures > 0, drawn, best)


def next_probabilities(logits: Tensor, wanted: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
    """Of each row of (rows, vocabulary) logits, the probabilities of the token ids that are wanted of it."""
    return [
        tuple(torch.softmax(row.float(), dim=-1)[list(ids)].tolist()) if ids else ()
        for row, ids in zip(logits, wanted, strict=True)
    ]


def draw(logits: Tensor, temperatures: Tensor, numbers: Tensor) -> Tensor:
    """The first token whose cumulative probability exceeds the row's number; shapes as in ``choose``."""
    chances = torch.softmax(logits.float() / temperatures[:, None], dim=-1)
    bounds = chances.cumsum(dim=-1, dtype=torch.float64)
    # Rounding leaves the last bound next to 1, not at it; scaling by it keeps every number below it, and right=True
    # never picks a token of no probability.
    targets = (numbers * bounds[:, -1]).clamp_max(torch.finfo(torch.float64).max)
    index = torch.searchsorted(bounds, targets[:, None], right=True)[:, 0]
    return index.clamp_max(logits.shape[-1] - 1)


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = z ^ (z >> np.uint64(31))
    return mixed
