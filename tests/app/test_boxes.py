"""Boxes as the specification normalises them, and the frame that they are in."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from app.boxes import BoxMalformed, BoxOutside, centre, extent_of, frame_of, is_outside, normalise_box
from tests.support.strategies import json_values

numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.floats(-50, 700)
sides = st.integers(1, 5000)


@pytest.mark.parametrize(
    ("bbox", "expected"),
    [
        ([0, 0, 427, 640], (0, 0, 999, 999)),
        ([-3.7, 12.25, 213.5, 651.9], (0, 19, 500, 999)),
        ([100.1, 50.5, 100.9, 51.25], (234, 78, 236, 80)),
        ([426, 639, 427, 640], (997, 998, 999, 999)),
        ([200, 300, 200, 400], (468, 468, 469, 625)),
        ([300, 400, 100, 200], (234, 312, 702, 625)),
        ([427, 640, 427, 640], (998, 998, 999, 999)),
        ([0, 0, 0, 0], (0, 0, 1, 1)),
        ([-1e308, -1e308, 1e308, 1e308], (0, 0, 999, 999)),
    ],
)
def test_boxes_are_normalised_as_the_specification_says(bbox: list[float], expected: tuple[int, ...]) -> None:
    assert normalise_box(bbox, 427, 640) == expected


def test_a_centre_is_the_middle_of_the_normalised_box_rounded_down() -> None:
    assert centre((0, 19, 501, 999)) == (250, 509)


@pytest.mark.parametrize(
    "bbox", [[447.5, 0, 517, 10], [-9, 0, -1, 10], [427, 0, 430, 10], [-5, 0, 0, 10], [0, 650, 10, 651]]
)
def test_a_box_wholly_outside_is_refused(bbox: list[float]) -> None:
    with pytest.raises(BoxOutside):
        normalise_box(bbox, 427, 640)


@pytest.mark.parametrize("bbox", [None, [1, 2, 3], [1, 2, "3", 4], [1, 2, float("nan"), 4], [1, 2, True, 4]])
def test_what_is_not_four_numbers_is_refused(bbox: Any) -> None:
    with pytest.raises(BoxMalformed):
        normalise_box(bbox, 427, 640)


@given(st.tuples(numbers, numbers, numbers, numbers), sides, sides)
def test_a_normalised_box_has_extent_within_0_and_999(box: Any, width: int, height: int) -> None:
    assume(not is_outside(box, (width, height)))
    x1, y1, x2, y2 = normalise_box(list(box), width, height)
    assert 0 <= x1 < x2 <= 999
    assert 0 <= y1 < y2 <= 999
    swapped = [box[2], box[1], box[0], box[3]]
    assert normalise_box(swapped, width, height) == (x1, y1, x2, y2)


@given(json_values, sides, sides)
def test_any_value_is_a_box_or_refused(value: Any, width: int, height: int) -> None:
    with contextlib.suppress(BoxMalformed, BoxOutside):
        normalise_box(value, width, height)


@pytest.mark.parametrize(
    ("boxes", "frame"),
    [
        ([[98, 129, 294, 401], [76, 89, 587, 318]], "stored"),
        ([[26, 98, 298, 294], [109, 76, 338, 587]], "upright"),
        ([[0, 0, 640.4, 427]], "stored"),
        ([], "stored"),
    ],
)
def test_boxes_are_in_the_stored_frame_if_they_fit_it_else_upright(boxes: list[Any], frame: str) -> None:
    assert frame_of(extent_of(boxes), (640, 427), (427, 640)) == frame
