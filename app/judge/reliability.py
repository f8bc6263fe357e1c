"""How far a score can be taken at its word, where the truth is known: reliability, calibration error, ranking.

A score is a probability that something holds, a truth whether it does; ``app.pair.verifications`` gives a relation's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True, slots=True)
class Bin:
    """The scores from ``low`` up to ``high`` (the last bin holds 1.0, too)."""

    low: float
    high: float
    count: int
    mean_score: float | None  # None where there is no score
    share_true: float | None  # how many of them hold; equal to the mean score where calibration is perfect


def reliability(scores: Sequence[float], truths: Sequence[bool], bins: int = 10) -> list[Bin]:
    """The reliability table: bins of equal width over 0..1, the lowest first.

    Raises ValueError for a score outside 0..1, and where scores and truths are not equally many.
    """
    _check(scores, truths)
    filled: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for score, truth in zip(scores, truths, strict=True):
        filled[min(int(score * bins), bins - 1)].append((score, truth))
    return [_bin(number / bins, (number + 1) / bins, found) for number, found in enumerate(filled)]


def expected_calibration_error(table: Sequence[Bin]) -> float:
    """The mean distance of the share of truths from the mean score, bins weighted by their scores.

    Source: Naeini, Cooper, Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015.
    Raises ValueError for a table without any score.
    """
    total = sum(each.count for each in table)
    if not total:
        raise ValueError("no score, so no calibration error")
    gaps = (
        each.count * abs(each.share_true - each.mean_score)
        for each in table
        if each.share_true is not None and each.mean_score is not None
    )
    return sum(gaps) / total


def area_under_roc(scores: Sequence[float], truths: Sequence[bool]) -> float:
    """How probable it is that what holds has a higher score than what does not; equal scores count half.

    The Mann-Whitney statistic by mean ranks. Raises ValueError unless there is some of either.
    """
    _check(scores, truths)
    true = sum(truths)
    false = len(truths) - true
    if not (true and false):
        raise ValueError("the area under the ROC curve needs something that holds and something that does not")
    rank_sum, before = 0.0, 0
    for _, tied in groupby(sorted(zip(scores, truths, strict=True)), key=lambda pair: pair[0]):
        held = [truth for _, truth in tied]
        rank_sum += sum(held) * (before + (len(held) + 1) / 2)
        before += len(held)
    return (rank_sum - true * (true + 1) / 2) / (true * false)


def _check(scores: Sequence[float], truths: Sequence[bool]) -> None:
    if len(scores) != len(truths):
        raise ValueError(f"{len(scores)} scores and {len(truths)} truths")
    wrong = next((score for score in scores if not 0.0 <= score <= 1.0), None)
    if wrong is not None:
        raise ValueError(f"a score of {wrong} is no probability")


def _bin(low: float, high: float, found: list[tuple[float, bool]]) -> Bin:
    if not found:
        return Bin(low, high, 0, None, None)
    scores, truths = zip(*found, strict=True)
    return Bin(low, high, len(found), sum(scores) / len(found), sum(truths) / len(found))
