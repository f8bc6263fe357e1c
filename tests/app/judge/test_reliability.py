"""The calibration helpers against definitions written out, on scores of every kind."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.judge.reliability import Bin, area_under_roc, expected_calibration_error, reliability

SCORED = st.lists(st.tuples(st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0]), st.booleans()), min_size=1)


def apart(scored: list[tuple[float, bool]]) -> tuple[list[float], list[bool]]:
    return [score for score, _ in scored], [truth for _, truth in scored]


@given(SCORED, st.integers(1, 20))
def test_each_score_is_in_one_bin_whose_bounds_hold_it(scored: list[tuple[float, bool]], bins: int) -> None:
    scores, truths = apart(scored)
    table = reliability(scores, truths, bins)
    assert len(table) == bins
    assert sum(each.count for each in table) == len(scores)
    assert sum(each.count * (each.share_true or 0.0) for each in table) == pytest.approx(sum(truths))
    for each in table:
        if each.mean_score is not None:
            assert each.low - 1e-9 <= each.mean_score <= each.high + 1e-9


def test_a_perfect_score_has_no_error_and_a_confident_lie_a_large_one() -> None:
    assert expected_calibration_error(reliability([0.0, 1.0, 1.0], [False, True, True])) == 0.0
    assert expected_calibration_error(reliability([0.0, 1.0], [True, False])) == 1.0
    assert expected_calibration_error(reliability([0.7] * 10, [True] * 7 + [False] * 3)) == pytest.approx(0.0)


def test_the_error_weighs_bins_by_their_scores() -> None:
    scores, truths = [0.1, 0.1, 0.1, 0.9], [False, False, True, False]
    assert expected_calibration_error(reliability(scores, truths)) == pytest.approx((3 * (1 / 3 - 0.1) + 0.9) / 4)


def test_an_empty_bin_says_so() -> None:
    assert reliability([0.9], [True], bins=2) == [Bin(0.0, 0.5, 0, None, None), Bin(0.5, 1.0, 1, 0.9, 1.0)]


@given(SCORED.filter(lambda scored: len({truth for _, truth in scored}) == 2))
def test_the_area_is_the_share_of_pairs_in_the_right_order(scored: list[tuple[float, bool]]) -> None:
    scores, truths = apart(scored)
    true = [score for score, truth in scored if truth]
    false = [score for score, truth in scored if not truth]
    pairs = [(one > other) + 0.5 * (one == other) for one in true for other in false]
    assert area_under_roc(scores, truths) == pytest.approx(sum(pairs) / len(pairs))


def test_what_cannot_be_said_is_refused() -> None:
    with pytest.raises(ValueError, match="needs something"):
        area_under_roc([0.5, 0.6], [True, True])
    with pytest.raises(ValueError, match="no probability"):
        reliability([1.5], [True])
    with pytest.raises(ValueError, match="1 scores and 2 truths"):
        reliability([0.5], [True, False])
    with pytest.raises(ValueError, match="no score"):
        expected_calibration_error(reliability([], []))
