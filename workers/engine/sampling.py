"""Drawing the next tokens: greedy, or by the inverse of the cumulative distribution at a number of the token's own.

The number for token ``t`` of a request depends on (seed, t) alone, so what is drawn does not depend on the
rows that happen to share the batch.

A row whose best logit is no finite number gets ``NO_TOKEN``: the maximum is looked for in any case, and the tokens are
read back in any case, so that noticing it costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from workers.engine.api import NO_TOKEN, Written

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
    row whose temperature is 0 is greedy in any case. ``NO_TOKEN`` for a row with NaN or infinity, however it is drawn:
    argmax takes NaN for the largest.
    """
    best = logits.argmax(dim=-1)
    finite = logits.gather(-1, best[:, None])[:, 0].isfinite()
    if temperatures is None or numbers is None:
        return torch.where(finite, best, NO_TOKEN)
    drawn = draw(logits, temperatures.clamp_min(1e-6), numbers)
    return torch.where(finite, torch.where(temperatures > 0, drawn, best), NO_TOKEN)


def adjusted(logits: Tensor, rows: Sequence[Written | None]) -> Tensor:
    """The logits with each row's penalties, and -inf for what its top-k and top-p leave out; (rows, vocabulary).

    None for a row whose temperature is all there is. Where all are, the logits come back as they are; else a float32
    copy. Repetition penalty: Keskar et al. 2019 (arXiv 1909.05858); top-p: Holtzman et al. 2020 (arXiv 1904.09751).
    """
    if not any(rows):
        return logits
    out = logits.float().clone()
    for at, row in enumerate(rows):
        if row is not None and row.sampling.penalises:
            _penalise(out[at], row)
    cut = [(at, row.sampling) for at, row in enumerate(rows) if row is not None and row.sampling.truncates]
    if cut:
        chosen = torch.tensor([at for at, _ in cut], device=out.device)
        columns = zip(*((each.temperature, each.top_k, each.top_p) for _, each in cut), strict=True)
        temperatures, top_ks, top_ps = (torch.tensor(each, device=out.device) for each in columns)
        out[chosen] = out[chosen].masked_fill(~_kept(out[chosen], temperatures, top_ks, top_ps), -torch.inf)
    return out


def _penalise(logits: Tensor, row: Written) -> None:
    """In place, a row's (vocabulary,)."""
    sampling = row.sampling
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor([*row.prompt, *row.output], device=logits.device)
        found = logits[seen]  # a token that stands there twice is written twice, the same
        logits[seen] = torch.where(found > 0, found / sampling.repetition_penalty, found * sampling.repetition_penalty)
    if sampling.presence_penalty != 0.0 and row.output:
        written = torch.tensor(list(row.output), device=logits.device)
        logits[written] = logits[written] - sampling.presence_penalty


def _kept(logits: Tensor, temperatures: Tensor, top_ks: Tensor, top_ps: Tensor) -> Tensor:
    """Which tokens of each row may be drawn, bool (rows, vocabulary): those within top-k, and of the chances of these
    the fewest of the likeliest that reach top-p together. A token as likely as the last one within top-k is within.
    """
    vocabulary = logits.shape[-1]
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    ks = torch.where(top_ks > 0, top_ks, vocabulary).clamp_max(vocabulary)
    ordered = ordered.masked_fill(ordered < ordered.gather(-1, ks[:, None] - 1), -torch.inf)
    chances = torch.softmax(ordered / temperatures.clamp_min(1e-6)[:, None], dim=-1)
    before = chances.cumsum(dim=-1, dtype=torch.float64) - chances
    kept = (ordered > -torch.inf) & ((before < top_ps[:, None]) | (top_ps[:, None] >= 1.0))
    kept[:, 0] = True
    return torch.zeros_like(kept).scatter_(-1, order, kept)


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
