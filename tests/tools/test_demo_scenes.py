"""The scenes that the demo shows: whole, as drawn, and described rightly by the shipped model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tools.small_model.dataset import seeded_scene
from tools.small_model.evaluate import SHIPPED, Describer
from tools.small_model.prompts import prompt

FOLDER = Path(__file__).parents[2] / "demo" / "scenes"
SEED = 7


@pytest.fixture(scope="module")
def images() -> list[dict[str, Any]]:
    images: list[dict[str, Any]] = json.loads((FOLDER / "images.json").read_text())
    return images


def test_they_are_those_of_the_seed(images: list[dict[str, Any]]) -> None:
    for number, image in enumerate(images):
        drawn = [(thing.class_name, thing.colour, list(thing.bbox)) for thing in seeded_scene(SEED, number)[0].objects]
        assert [(one["class_name"], one["colour"], one["bbox"]) for one in image["objects"]] == drawn
        with Image.open(FOLDER / image["image_path"]) as opened:
            assert opened.size == (image["width"], image["height"])


def test_some_scene_holds_two_objects_of_a_class(images: list[dict[str, Any]]) -> None:
    classes = [[thing["class_name"] for thing in image["objects"]] for image in images]
    assert any(len(set(names)) < len(names) for names in classes)


def test_the_shipped_model_names_their_colours(images: list[dict[str, Any]]) -> None:
    describer, right, asked = Describer(SHIPPED), 0, 0
    for image in images:
        objects = {thing["id"]: thing for thing in image["objects"]}
        pairs = [(objects[r["subject_id"]], objects[r["object_id"]]) for r in image["relations"]][:8]
        size = image["width"], image["height"]
        with Image.open(FOLDER / image["image_path"]) as drawn:
            texts = [prompt((s["class_name"], o["class_name"]), (s["bbox"], o["bbox"]), size, "near") for s, o in pairs]
            answers = describer.describe([drawn.convert("RGB")] * len(texts), texts)
        for (subject, object_), answer in zip(pairs, answers, strict=True):
            asked += 1
            right += answer.startswith(f"The {subject['colour']} {subject['class_name']} is ") and (
                f" the {object_['colour']} {object_['class_name']}, " in answer
            )
    assert right / asked >= 0.9
