"""Images reach the model: through producer, queue, worker, row and export, in each engine, with every cache on."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from app.judge.reliability import area_under_roc
from producer.run_request import Inputs
from tests.support.farm import QUICK, Farm
from tests.support.servers import SqliteFile
from tools.small_model.dataset import write_inputs

SAID = re.compile(
    r"The (\w+) (\w+) is (.+) the (\w+) (\w+), and they (overlap|are apart)\. \"(.+)\" (fits|does not fit)\."
)
SETTINGS: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 64}
BOXES = {"circle": (20, 20, 60, 60), "square": (90, 80, 140, 130)}


@pytest.fixture(scope="module", params=["builtin", "transformers"])
def farm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """A farm with the small model behind one engine."""
    folder = tmp_path_factory.mktemp("sees")
    with Farm(folder, SqliteFile(folder / "farm.sqlite"), **QUICK) as made:
        made.start_worker(engine=request.param, pairs_in_flight=16)
        yield made


def described(farm: Farm, inputs: Inputs, name: str) -> list[dict[str, Any]]:
    farm.enqueue(inputs, name, **SETTINGS)
    return finished(farm, name)


def finished(farm: Farm, name: str, **options: Any) -> list[dict[str, Any]]:
    farm.wait_done(name)
    results: list[dict[str, Any]] = json.loads(farm.export(name, **options).path.read_text())["results"]
    return results


def draw(path: Path, circle: str, square: str) -> None:
    image = Image.new("RGB", (160, 144), "white")
    pen = ImageDraw.Draw(image)
    pen.ellipse(BOXES["circle"], fill=circle)
    pen.rectangle(BOXES["square"], fill=square)
    image.save(path)


def one_question_a_image(folder: Path, paths: list[str]) -> Inputs:
    objects = [{"id": at, "class_name": name, "bbox": list(box)} for at, (name, box) in enumerate(BOXES.items())]
    images = [{"image_id": at, "image_path": path, "objects": objects} for at, path in enumerate(paths)]
    asked = [{"subject": "circle", "object": "square", "predicted_predicate": "left of", "similarity": 0.5}]
    (folder / "images.json").write_text(json.dumps(images))
    stage1 = {"per_image_top100_candidates": {str(at): asked for at in range(len(paths))}}
    (folder / "stage1.json").write_text(json.dumps(stage1))
    return Inputs(folder / "stage1.json", folder / "images.json", folder)


def colours(results: list[dict[str, Any]]) -> list[tuple[str, str]]:
    texts = [result["stage2_generated"][0]["generated_description"] for result in results]
    found = [SAID.fullmatch(text) for text in texts]
    return [(match[1], match[4]) if match else ("?", text) for match, text in zip(found, texts, strict=True)]


def test_swapped_images_give_swapped_colours(farm: Farm, tmp_path: Path) -> None:
    names = [("red", "blue"), ("yellow", "green"), ("blue", "red"), ("green", "yellow")]
    for at, (circle, square) in enumerate(names):
        draw(tmp_path / f"{at}.png", circle, square)
    paths = [f"{at}.png" for at in range(len(names))]
    assert colours(described(farm, one_question_a_image(tmp_path, paths), "straight")) == names
    swapped = one_question_a_image(tmp_path, paths[::-1])
    assert colours(described(farm, swapped, "swapped")) == names[::-1]


def test_a_image_that_changed_under_its_name_is_seen_anew(farm: Farm, tmp_path: Path) -> None:
    draw(tmp_path / "a.png", "red", "blue")
    inputs = one_question_a_image(tmp_path, ["a.png"])
    assert colours(described(farm, inputs, "before")) == [("red", "blue")]
    draw(tmp_path / "b.png", "green", "yellow")
    shutil.move(tmp_path / "b.png", tmp_path / "a.png")
    assert colours(described(farm, inputs, "after")) == [("green", "yellow")]


def test_fresh_scenes_are_described_as_they_were_drawn(farm: Farm, tmp_path: Path) -> None:
    write_inputs(tmp_path, scenes=5, seed=90_210)
    inputs = Inputs(tmp_path / "recall_results.json", tmp_path / "images.json", tmp_path)
    images = {image["image_id"]: image for image in json.loads(inputs.images.read_text())}
    results = described(farm, inputs, "fresh")
    verdicts = [verdict for result in results for verdict in judged(result, images[result["image_id"]])]
    assert len(verdicts) >= 30
    assert sum(verdicts) / len(verdicts) >= 0.95


def test_the_probability_of_yes_tells_what_holds_from_what_does_not(farm: Farm, tmp_path: Path) -> None:
    write_inputs(tmp_path, scenes=2, seed=4_711)
    inputs = Inputs(tmp_path / "recall_results.json", tmp_path / "images.json", tmp_path)
    farm.enqueue(inputs, "verified", verify="zh", **SETTINGS)
    results = finished(farm, "verified", details=True)
    scored = [
        (score, one["predicate"] in result["gt_predicates"])
        for result in results
        for one, score in zip(result["stage2_generated"], result["stage2_verification"], strict=True)
    ]
    assert len(scored) >= 30
    assert area_under_roc([score for score, _ in scored], [truth for _, truth in scored]) >= 0.97


def judged(result: dict[str, Any], image: dict[str, Any]) -> Iterator[bool]:
    """Of each description over a clear pair: whether colours, direction, overlap and fit are the drawing's."""
    wanted = (result["subject_id"], result["object_id"])
    truths = [one for one in image["relations"] if (one["subject_id"], one["object_id"]) == wanted]
    colour = {item["id"]: item["colour"] for item in image["objects"]}
    for truth in truths:
        for generated in result["stage2_generated"]:
            said = SAID.fullmatch(generated["generated_description"])
            yield said is not None and said.groups() == (
                colour[wanted[0]],
                result["subject"],
                truth["direction"],
                colour[wanted[1]],
                result["object"],
                "overlap" if truth["overlap"] else "are apart",
                generated["predicate"],
                "fits" if generated["predicate"] in truth["predicates"] else "does not fit",
            )
