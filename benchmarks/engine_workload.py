"""The workload of the engine's benchmark: photographs, pairs, predicates, and how long each answer is."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from workers.engine.api import ImageSource, Request, SamplingParams, Segment

SIZE = (640, 480)  # pixels, as most of the photographs in the real runs
SHORTEST, LONGEST = 32, 192  # new tokens of an answer
MOST_PREDICATES = 10

NAMES = """
man woman person boy girl shirt jacket tree train car bus windshield window building street sidewalk
sky horse dog cat elephant giraffe table chair plate bowl cup glass bottle pizza plant flower hill
mountain wave surfboard beach boat kite skateboard motorcycle bicycle wheel tire sign pole light
door roof fence
"""
VERBS = """
on|in|has|wearing|of|near|with|behind|above|under|sitting on|standing on|holding|
riding|in front of|next to|attached to|hanging from|parked on|looking at|walking on|
carrying|over|between|covering|belonging to|along
"""
CLASSES = NAMES.split()
PREDICATES = [verb.strip() for verb in VERBS.split("|")]


@dataclass(frozen=True)
class Workload:
    """Requests by pair, pair by pair in the order of the images."""

    pairs: list[list[Request]]
    images: int

    @property
    def requests(self) -> list[Request]:
        """All of them, in order."""
        return [request for pair in self.pairs for request in pair]

    @property
    def tokens(self) -> int:
        """New tokens in all: every answer is as long as it may be."""
        return sum(request.sampling.max_new_tokens for request in self.requests)


def build_workload(images: int, candidates: int, *, folder: Path | None, seed: int) -> Workload:
    """Seeded: ``candidates`` requests an image in pairs of 1 to 10 predicates (mean about 6).

    Answers are 32 to 192 tokens long; each ends at a length of its own, which is its ``max_new_tokens``: the
    benchmark's models never write an end token, so that every engine writes the same amount.
    """
    dice = random.Random(seed)
    pairs = []
    for number in range(images):
        image = ImageSource(f"image-{seed}-{number}", partial(_pixels, _source(folder, number)))
        left = candidates
        while left > 0:
            count = min(left, dice.choice((1, 3, 5, 6, 6, 7, 8, 9, MOST_PREDICATES)))
            pairs.append(_pair(image, count, dice))
            left -= count
    return Workload(pairs, images)


def warm_up() -> Workload:
    """Two requests over an image of their own: what an engine does once is done before it is timed."""
    return build_workload(1, 2, folder=None, seed=2**31)


def _pair(image: ImageSource, count: int, dice: random.Random) -> list[Request]:
    subject, obj = dice.sample(CLASSES, 2)
    boxes = [_box(dice), _box(dice)]
    lengths = [dice.randint(SHORTEST, LONGEST) for _ in range(count)]
    return [
        Request(image, prompt(subject, obj, boxes, predicate), SamplingParams(0.0, length, seed=0))
        for predicate, length in zip(dice.sample(PREDICATES, count), lengths, strict=True)
    ]


def prompt(subject: str, obj: str, boxes: list[tuple[int, int, int, int]], predicate: str) -> tuple[Segment, ...]:
    """The specification's prompt."""
    (sx, sy), (ox, oy) = (((x1 + x2) // 2, (y1 + y2) // 2) for x1, y1, x2, y2 in boxes)
    first, second = (", ".join(map(str, box)) for box in boxes)
    start, end = "<|object_ref_start|>", "<|object_ref_end|>"
    return (
        (f"这是一张图，物体{start}", False), (subject, True), (f"{end}和{start}", False), (obj, True),
        (f"{end}在位置({sx}, {sy})和({ox}, {oy})，{start}", False), (subject, True),
        (f"{end}位于<|box_start|>({first})<|box_end|>，{start}", False), (obj, True),
        (f"{end}位于<|box_start|>({second})<|box_end|>，", False), (subject, True), (" is roughly ", False),
        (predicate, True), (" ", False), (obj, True), ("，请给出", False), (subject, True),
        ("和", False), (obj, True),
        ("细节的相对关系", False),
    )  # fmt: skip


def _box(dice: random.Random) -> tuple[int, int, int, int]:
    x, y = dice.randrange(800), dice.randrange(800)
    return x, y, x + dice.randrange(20, 200), y + dice.randrange(20, 200)


def _source(folder: Path | None, number: int) -> Callable[[], Image.Image]:
    if folder is None:
        return partial(_synthetic, number)
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    return partial(Image.open, files[number % len(files)])


def _pixels(source: Callable[[], Image.Image]) -> Image.Image:
    return source().convert("RGB").resize(SIZE)


@cache
def _synthetic(number: int) -> Image.Image:
    noise = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC)
