"""The farm's own prompts over real inputs, for benchmarks that need the engine alone."""

from __future__ import annotations

from functools import partial
from itertools import islice
from pathlib import Path

from PIL import Image

from app.inputs.drops import Drops
from app.inputs.reader import read_pairs
from app.prompts import load_template, render
from workers.engine.api import ImageSource, Request, SamplingParams

SCENES = Path(__file__).resolve().parents[1] / "demo" / "scenes"


def real_requests(
    recall_results: Path, images: Path, image_root: Path, *, temperature: float, max_new_tokens: int, limit: int
) -> list[list[Request]]:
    """Requests by pair, ``limit`` at most in all, each seeded by its number."""
    template = load_template("per-predicate")
    pairs: list[list[Request]] = []
    count = 0
    for pair in read_pairs(recall_results, images, drops=Drops()):
        path = image_root / pair.image_path
        with Image.open(path) as image:
            size = image.size
        source = ImageSource(pair.image_path, partial(_pixels, path))
        predicates = islice(dict.fromkeys(pair.predicates), limit - count)
        made = [
            Request(
                source,
                render(template, pair, predicate, size),
                SamplingParams(temperature, max_new_tokens, seed=count + number),
            )
            for number, predicate in enumerate(predicates)
        ]
        if not made:
            break
        pairs.append(made)
        count += len(made)
    return pairs


def _pixels(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
