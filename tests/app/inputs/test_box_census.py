"""Boxes in another form than the one that is said are noticed; where the form is said, they are converted."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from app.boxes import BOX_FORMATS, Box, BoxFormat, Size, in_pixels
from app.inputs.box_census import BoxCensus
from app.inputs.drops import Drops, Reason
from app.inputs.reader import read_pairs
from app.pair import Pair
from tests.support.runs import write_inputs

SIZES: tuple[Size, ...] = ((640, 427), (500, 375), (333, 500))


def written(box: Box, form: BoxFormat, size: Size) -> Box:
    """A box of corners in pixels, as an input of that form writes it."""
    left, top, right, bottom = box
    return {
        "xyxy": box,
        "xywh": (left, top, right - left, bottom - top),
        "yxyx": (top, left, bottom, right),
        "relative": (left / size[0], top / size[1], right / size[0], bottom / size[1]),
    }[form]


def drawn(numbers: random.Random, size: Size) -> Box:
    left, top = numbers.randrange(size[0] - 10), numbers.randrange(size[1] - 10)
    return left, top, numbers.randrange(left + 5, size[0] + 1), numbers.randrange(top + 5, size[1] + 1)


def census_of(form: BoxFormat, said: BoxFormat, seed: int = 0) -> BoxCensus:
    numbers, census = random.Random(seed), BoxCensus(said)
    for _ in range(40):
        size = numbers.choice(SIZES)
        census.see([written(drawn(numbers, size), form, size) for _ in range(8)], size)
    return census


@pytest.mark.parametrize("form", BOX_FORMATS)
def test_a_written_box_comes_back_in_pixels(form: BoxFormat) -> None:
    box, size = (30, 40, 200, 90), (400, 200)
    assert in_pixels(written(box, form, size), form, size) == pytest.approx(box)
    if form != "relative":
        assert all(isinstance(each, int) for each in in_pixels(written(box, form, size), form, size))


@pytest.mark.parametrize("form", BOX_FORMATS)
@pytest.mark.parametrize("said", BOX_FORMATS)
def test_the_form_that_was_written_is_proposed_where_another_was_said(form: BoxFormat, said: BoxFormat) -> None:
    for seed in range(3):
        warning = census_of(form, said, seed).warning()
        if form == said:
            assert warning is None
        else:
            assert warning is not None
            assert f"--box-format {form}?" in warning


def test_boxes_a_little_over_the_border_and_a_few_wrong_ones_say_nothing() -> None:
    census, numbers = BoxCensus(), random.Random(3)
    for at in range(100):
        left, top, right, bottom = drawn(numbers, (640, 427))
        census.see([(left - 1, top - 2, right + 3, bottom + 1) if at % 20 else (600, 400, 20, 10)], (640, 427))
    assert census.warning() is None


def test_boxes_of_other_images_are_told_without_a_proposal() -> None:
    census = BoxCensus()
    census.see([(900, 800, 1200, 1000), (700, 650, 1100, 900)], (320, 240))
    warning = census.warning()
    assert warning is not None
    assert "2 of 2 boxes" in warning
    assert "2 reach over the image's border" in warning
    assert "do like" not in warning


@pytest.mark.parametrize("form", BOX_FORMATS)
def test_pairs_hold_corners_in_pixels_whatever_was_written(tmp_path: Path, form: BoxFormat) -> None:
    inputs = write_inputs(tmp_path, images=2, pairs=2)
    expected = pairs_of(inputs.stage1, inputs.images, "xyxy")
    images = json.loads(inputs.images.read_text())
    for image in images:
        for each in image["objects"]:
            each["bbox"] = written(tuple(each["bbox"]), form, (64, 48))
    inputs.images.write_text(json.dumps(images))
    found = pairs_of(inputs.stage1, inputs.images, form)
    assert [pair.key for pair in found] == [pair.key for pair in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.subject_box == pytest.approx(theirs.subject_box)
        assert ours.object_box == pytest.approx(theirs.object_box)
        assert ours.extent == pytest.approx(theirs.extent)
        if form != "relative":  # a share times the size is a whole number only nearly
            assert ours.request == theirs.request


def test_relative_boxes_of_an_unreadable_image_are_dropped_and_pixels_of_one_are_not(tmp_path: Path) -> None:
    inputs, drops = write_inputs(tmp_path, images=2, pairs=2), Drops()
    (tmp_path / json.loads(inputs.images.read_text())[0]["image_path"]).write_bytes(b"\x89PNG\r\n\x1a\nno more")
    assert not list(read_pairs(inputs.stage1, inputs.images, census=BoxCensus("relative"), drops=drops))
    assert drops.counts == {Reason.NO_SIZE: 2, Reason.BOX_OUTSIDE: 2}, "pixels taken for shares lie far outside"
    assert len(pairs_of(inputs.stage1, inputs.images, "xywh")) == 4


def pairs_of(stage1: Any, images: Path, form: BoxFormat) -> list[Pair]:
    return list(read_pairs(stage1, images, census=BoxCensus(form), drops=Drops()))
