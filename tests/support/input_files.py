"""Small input files for the tests, and where the shared data lies."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from app.inputs.drops import Drops
from app.inputs.reader import read_pairs
from app.pair import Pair

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the shared data is not at {DATA}")

OBJECTS = [
    {"id": 1, "class_name": "man", "bbox": [10, 10, 50, 90]},
    {"id": 2, "class_name": "dog", "bbox": [40, 60, 80, 95], "colour": "brown"},
    {"id": 3, "class_name": "man", "bbox": [60, 10, 99, 90]},
]


def candidate(predicate: Any = "on", similarity: Any = 0.5, **more: Any) -> dict[str, Any]:
    """A candidate of the pair (man, dog)."""
    return {
        "subject": "man",
        "object": "dog",
        "predicted_predicate": predicate,
        "similarity": similarity,
    } | more


def image(image_id: Any = 7, path: Any = "a.jpg", **more: Any) -> dict[str, Any]:
    """An image with ``OBJECTS``."""
    return {"image_id": image_id, "image_path": path, "objects": OBJECTS} | more


@dataclass
class Inputs:
    """Writes both input files into a folder and reads the pairs back."""

    folder: Path
    drops: Drops = field(default_factory=Drops)

    def read(self, stage1: Any, images: Any = None, **options: Any) -> list[Pair]:
        """The pairs of {image key: candidates} (or a whole file as text) and a list of images."""
        if not isinstance(stage1, str):
            stage1 = json.dumps({"per_image_top100_candidates": stage1})
        stage1_path, images_path = self.folder / "stage1.json", self.folder / "images.json"
        stage1_path.write_bytes(stage1.encode("utf-8", "surrogateescape"))
        images_path.write_text(images if isinstance(images, str) else json.dumps(images or [image()]))
        options = {"check_files": False} | options
        return list(read_pairs(stage1_path, images_path, drops=self.drops, **options))

    @property
    def reasons(self) -> dict[str, int]:
        """All counts, but for images without candidates."""
        return {reason.name: n for reason, n in self.drops.counts.items() if reason.name != "NO_CANDIDATES"}
