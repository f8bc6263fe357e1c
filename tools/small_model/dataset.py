"""Questions over scenes: for training, for the evaluation, and as the two input files of the farm.

    python -m tools.small_model.dataset --out DIR --scenes 20 --seed 7

writes images and the two input files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from app.prompts import load_question
from tools.small_model.prompts import prompt, question_prompt
from tools.small_model.rules import FITS, Margins, Relation, answer
from tools.small_model.scenes import Scene, SceneObject, draw_scene, random_size

NO_RELATION = "no relation"


@dataclass(frozen=True)
class Question:
    """A pair of a scene and a suggested predicate, and what is true of them."""

    subject: SceneObject
    object: SceneObject
    relation: Relation
    predicate: str
    prompt: str

    @property
    def answer(self) -> str:
        """The true answer."""
        names = self.subject.class_name, self.object.class_name
        return answer(names, (self.subject.colour, self.object.colour), self.relation, self.predicate)

    @property
    def holds(self) -> bool:
        """Whether the predicate fits; asked are only those whose rule speaks."""
        return bool(FITS[self.predicate](self.relation))


@dataclass(frozen=True)
class Verification(Question):
    """The same asked for yes or no: whether the predicate fits."""

    @classmethod
    def of(cls, described: Question, size: tuple[int, int]) -> Verification:
        """Of the pair and predicate of another question over an image of ``size`` (width, height)."""
        names = described.subject.class_name, described.object.class_name
        boxes = described.subject.bbox, described.object.bbox
        asked = question_prompt(names, boxes, size, described.predicate)
        return cls(described.subject, described.object, described.relation, described.predicate, asked)

    @property
    def answer(self) -> str:
        """Yes or no, as the model is told to say it."""
        question = load_question("zh")
        return (question.yes if self.holds else question.no)[0]


def questions(rng: np.random.Generator, scene: Scene, count: int, margins: Margins) -> list[Question]:
    """``count`` questions over the scene's clear pairs; about half of the predicates fit."""
    pairs = scene.clear_pairs(margins)
    order = [k % len(pairs) for k in range(count)] if count > len(pairs) else range(len(pairs))
    return [_question(rng, scene, *pairs[k]) for k in rng.permutation(order)[:count]]


def _question(
    rng: np.random.Generator, scene: Scene, subject: SceneObject, object_: SceneObject, found: Relation
) -> Question:
    wanted = bool(rng.random() < 0.5)
    predicate = str(rng.choice([name for name, rule in FITS.items() if rule(found) is wanted]))
    names, boxes = (subject.class_name, object_.class_name), (subject.bbox, object_.bbox)
    return Question(subject, object_, found, predicate, prompt(names, boxes, scene.image.size, predicate))


def seeded_scene(seed: int, number: int, margins: Margins | None = None) -> tuple[Scene, np.random.Generator]:
    """Scene ``number`` of a seed, and the generator that drew it, for the questions over it."""
    rng = np.random.default_rng([seed, number])
    return draw_scene(rng, random_size(rng), margins or Margins()), rng


def write_inputs(folder: Path, *, scenes: int, seed: int) -> int:
    """Write images, ``images.json`` and ``recall_results.json``; gives the number of candidates.

    Objects carry the extra key ``colour``, images ``width``, ``height`` and, as ``relations``, what is true
    of each clear pair.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    recall: dict[str, list[dict[str, Any]]] = {}
    for number in range(scenes):
        scene, rng = seeded_scene(seed, number)
        image_id = seed * 10_000 + number
        path = folder / "images" / f"{image_id}.png"
        scene.image.save(path)
        images.append(_image_row(scene, image_id, f"images/{path.name}"))
        recall[str(image_id)] = _candidates(rng, scene)
    (folder / "images.json").write_text(json.dumps(images, indent=1))
    (folder / "recall_results.json").write_text(json.dumps({"per_image_top100_candidates": recall}, indent=1))
    return sum(map(len, recall.values()))


def _image_row(scene: Scene, image_id: int, path: str) -> dict[str, Any]:
    objects = [
        {"id": o.id, "class_name": o.class_name, "bbox": list(o.bbox), "colour": o.colour} for o in scene.objects
    ]
    relations = [
        {
            "subject_id": s.id,
            "object_id": o.id,
            "predicates": _fitting(r),
            "direction": r.direction,
            "overlap": r.overlap,
        }
        for s, o, r in scene.clear_pairs(Margins())
    ]
    width, height = scene.image.size
    return {"image_id": image_id, "image_path": path, "width": width, "height": height, "objects": objects,
            "relations": relations}  # fmt: skip


def _fitting(found: Relation) -> list[str]:
    return [name for name, rule in FITS.items() if rule(found)]


def _candidates(rng: np.random.Generator, scene: Scene) -> list[dict[str, Any]]:
    """Stage-1 rows: a few predicates for each clear pair, right ones mostly more similar."""
    rows: list[dict[str, Any]] = []
    for subject, object_, found in scene.clear_pairs(Margins()):
        right, wrong = _fitting(found), [name for name, rule in FITS.items() if rule(found) is False]
        chosen = [str(p) for p in rng.permutation(right)[:2]] + [str(p) for p in rng.permutation(wrong)[:2]]
        chosen = chosen if rng.random() < 0.9 else [NO_RELATION]
        for predicate in [*chosen, *([NO_RELATION] if rng.random() < 0.3 else [])]:
            similarity = rng.uniform(0.4, 0.95) if predicate in right else rng.uniform(0.2, 0.75)
            rows.append(
                {
                    "subject": subject.class_name,
                    "object": object_.class_name,
                    "subject_id": subject.id,
                    "object_id": object_.id,
                    "predicted_predicate": predicate,
                    "similarity": round(float(similarity), 4),
                    "has_gt": bool(right),
                    "gt_predicates": right,
                }
            )
    return sorted(rows, key=lambda row: -row["similarity"])[:100]


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write to.")
@click.option("--scenes", default=20, show_default=True, help="How many scenes.")
@click.option("--seed", default=0, show_default=True, help="Equal seeds draw equal scenes.")
def main(out: Path, scenes: int, seed: int) -> None:
    """Draw scenes and write them as the two input files of the farm.

    Example: python -m tools.small_model.dataset --out /tmp/scenes --scenes 20 --seed 7
    """
    written = write_inputs(out, scenes=scenes, seed=seed)
    click.echo(f"{scenes} scenes, {written} candidates: {out}/images.json, {out}/recall_results.json")


if __name__ == "__main__":
    main()
