"""Inputs for the fault benchmark: small drawn images, several predicates a pair, and a few bad images."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

_PAIRS_AN_IMAGE = 6
_NAMES = ("man", "dog", "tree", "car", "house", "horse", "“sign”", "<|im_end|>")
_PREDICATES = ("on", "near", "left of", "right of", "above", "below", "behind", "holding")


@dataclass(frozen=True)
class DrawnInputs:
    """Where the two files of a run are, and how many pairs they hold."""

    stage1: Path
    images: Path
    pairs: int


def draw_inputs(folder: Path, pairs: int, *, seed: int, bad_images: int = 1) -> DrawnInputs:
    """Write images and both input files; the last ``bad_images`` images are cut off, and their pairs must fail."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = random.Random(seed)
    images, candidates = [], {}
    count = -(-pairs // _PAIRS_AN_IMAGE)
    for number in range(count):
        name = f"{number}.png"
        boxes = _draw(folder / name, numbers)
        if number >= count - bad_images:
            whole = (folder / name).read_bytes()
            (folder / name).write_bytes(whole[: len(whole) // 2])
        objects = [{"id": place, "class_name": numbers.choice(_NAMES), "bbox": box} for place, box in enumerate(boxes)]
        images.append({"image_id": number, "image_path": name, "objects": objects})
        wanted = min(_PAIRS_AN_IMAGE, pairs - number * _PAIRS_AN_IMAGE)
        candidates[str(number)] = _candidates(objects, wanted, numbers)
    stage1, images_file = folder / "recall_results.json", folder / "images.json"
    stage1.write_text(json.dumps({"per_image_top100_candidates": candidates}))
    images_file.write_text(json.dumps(images))
    return DrawnInputs(stage1, images_file, pairs)


def _draw(path: Path, numbers: random.Random) -> list[list[int]]:
    """An image of four boxes on a plain ground; gives the boxes."""
    image = Image.new("RGB", (96, 80), _colour(numbers))
    pen = ImageDraw.Draw(image)
    boxes = []
    for _ in range(4):
        left, top = numbers.randrange(60), numbers.randrange(50)
        boxes.append([left, top, left + numbers.randrange(10, 36), top + numbers.randrange(10, 30)])
        pen.rectangle(boxes[-1], fill=_colour(numbers))
    image.save(path)
    return boxes


def _colour(numbers: random.Random) -> tuple[int, int, int]:
    return numbers.randrange(256), numbers.randrange(256), numbers.randrange(256)


def _candidates(objects: list[dict[str, object]], wanted: int, numbers: random.Random) -> list[dict[str, object]]:
    made = []
    for subject, other in numbers.sample([(one, two) for one in objects for two in objects if one != two], wanted):
        for predicate in numbers.sample(_PREDICATES, numbers.randrange(1, 4)):
            made.append(
                {
                    "subject": subject["class_name"],
                    "object": other["class_name"],
                    "subject_id": subject["id"],
                    "object_id": other["id"],
                    "predicted_predicate": predicate,
                    "similarity": round(numbers.random(), 3),
                }
            )
    return made
