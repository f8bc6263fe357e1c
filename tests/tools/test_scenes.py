"""Drawn scenes: what is written down about them is what their pixels show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.small_model.dataset import questions, seeded_scene, write_inputs
from tools.small_model.prompts import normalised, prompt
from tools.small_model.rules import FITS, Margins, Relation, answer, relation
from tools.small_model.scenes import Scene
from tools.small_model.shapes import COLOURS, SHAPES, hsv_rgb, shape_mask

SIZE = (100, 100)
AT = {
    "left": (0, 40, 20, 60),
    "right": (70, 40, 90, 60),
    "upper left": (0, 0, 20, 20),
    "wide": (10, 45, 60, 65),
}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [seeded_scene(5, number)[0] for number in range(40)]


def test_equal_seeds_draw_equal_scenes_and_other_seeds_others() -> None:
    first, again, other = (seeded_scene(seed, 3)[0] for seed in (5, 5, 6))
    assert first.objects == again.objects
    assert np.array_equal(np.asarray(first.image), np.asarray(again.image))
    assert first.objects != other.objects


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_fills_its_box_and_holds_its_middle(name: str) -> None:
    mask = shape_mask(name, 40, 40, smooth=True)
    assert min(mask[0].max(), mask[-1].max(), mask[:, 0].max(), mask[:, -1].max()) > 0
    assert mask[18:22, 18:22].min() == 1


def test_the_middle_of_a_shape_shows_its_colour(scenes: list[Scene]) -> None:
    for scene in scenes:
        pixels = np.asarray(scene.image, dtype=float)
        for thing in scene.objects:
            x, y = (thing.bbox[0] + thing.bbox[2]) // 2, (thing.bbox[1] + thing.bbox[3]) // 2
            assert scene.owner[y, x] == thing.id
            seen = np.median(pixels[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3), axis=0)
            assert _nearest_colour(seen) == thing.colour


def test_boxes_hold_their_visible_pixels(scenes: list[Scene]) -> None:
    for scene in scenes:
        for thing in scene.objects:
            ys, xs = np.nonzero(scene.owner == thing.id)
            assert xs.min() >= thing.bbox[0]
            assert xs.max() < thing.bbox[2]
            assert ys.min() >= thing.bbox[1]
            assert ys.max() < thing.bbox[3]


def test_scenes_vary(scenes: list[Scene]) -> None:
    things = [thing for scene in scenes for thing in scene.objects]
    assert {thing.colour for thing in things} == set(COLOURS)
    assert {thing.class_name for thing in things} == set(SHAPES)
    names = [[thing.class_name for thing in scene.objects] for scene in scenes]
    assert any(len(set(one)) < len(one) for one in names)
    relations = [found for scene in scenes for *_, found in scene.clear_pairs(Margins())]
    assert {found.overlap for found in relations} == {True, False}
    assert len({found.direction for found in relations}) == 8


def test_rules_read_boxes() -> None:
    assert relation(AT["left"], AT["right"], SIZE, Margins()) == Relation(-1, 0, False, False)
    assert relation(AT["right"], AT["upper left"], SIZE, Margins()) == Relation(1, 1, False, False)
    assert relation(AT["wide"], AT["left"], SIZE, Margins()) == Relation(1, 0, True, True)


def test_rules_are_silent_in_their_margins() -> None:
    assert relation((0, 40, 20, 60), (11, 70, 31, 90), SIZE, Margins()) is None  # centres 0.11 apart
    assert relation((0, 40, 20, 60), (21, 40, 41, 60), SIZE, Margins()) is None  # a gap of 0.01
    assert relation((0, 40, 20, 60), (5, 45, 25, 65), SIZE, Margins()) is None  # no direction at all


def test_predicates_follow_from_direction_and_touch() -> None:
    above = Relation(0, -1, True, True)
    fitting = [name for name, rule in FITS.items() if rule(above)]
    assert fitting == ["above", "on", "near", "touching", "overlapping"]


def test_the_answer_in_words() -> None:
    text = answer(("circle", "star"), ("red", "blue"), Relation(-1, -1, False, False), "next to")
    assert text == ('The red circle is to the upper left of the blue star, and they are apart. "next to" does not fit.')


def test_the_prompt_is_the_specifications() -> None:
    text = prompt(("a", "b"), ((0, 10, 50, 60), (10, 20, 100, 101)), (100, 100), "on")
    assert text == (
        "这是一张图，物体<|object_ref_start|>a<|object_ref_end|>和<|object_ref_start|>b<|object_ref_end|>"
        "在位置(250, 350)和(549, 599)，"
        "<|object_ref_start|>a<|object_ref_end|>位于<|box_start|>(0, 100, 500, 600)<|box_end|>，"
        "<|object_ref_start|>b<|object_ref_end|>位于<|box_start|>(100, 200, 999, 999)<|box_end|>，"
        "a is roughly on b，请给出a和b细节的相对关系"
    )
    assert normalised((50, 50, 50, 20), SIZE) == (500, 200, 501, 500)


def test_half_of_the_questions_fit() -> None:
    asked = []
    for number in range(60):
        scene, rng = seeded_scene(9, number)
        asked += questions(rng, scene, 6, Margins())
    share = np.mean([FITS[one.predicate](one.relation) is True for one in asked])
    assert 0.4 < share < 0.6


def test_the_two_input_files(tmp_path: Path) -> None:
    written = write_inputs(tmp_path, scenes=6, seed=2)
    images = json.loads((tmp_path / "images.json").read_text())
    recall = json.loads((tmp_path / "recall_results.json").read_text())["per_image_top100_candidates"]
    assert [str(image["image_id"]) for image in images] == list(recall)
    assert sum(map(len, recall.values())) == written
    for image in images:
        with Image.open(tmp_path / image["image_path"]) as drawn:
            assert drawn.size == (image["width"], image["height"])
        classes = {thing["id"]: thing["class_name"] for thing in image["objects"]}
        for row in recall[str(image["image_id"])]:
            assert classes[row["subject_id"]] == row["subject"]
            assert classes[row["object_id"]] == row["object"]
    rows = [row for rows in recall.values() for row in rows]
    assert any(row["predicted_predicate"] == "no relation" for row in rows)
    suggested = [row for row in rows if row["predicted_predicate"] != "no relation"]
    assert {row["predicted_predicate"] in row["gt_predicates"] for row in suggested} == {True, False}


def _nearest_colour(rgb: np.ndarray) -> str:
    def distance(name: str) -> float:
        corners = [
            hsv_rgb(hue, saturation, value)
            for hue in np.linspace(*COLOURS[name][0], 5)
            for saturation in np.linspace(*COLOURS[name][1], 5)
            for value in np.linspace(*COLOURS[name][2], 5)
        ]
        return float(min(np.abs(rgb - corner).sum() for corner in corners))

    return min(COLOURS, key=distance)
