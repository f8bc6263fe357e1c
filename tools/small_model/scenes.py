"""Draw scenes of coloured shapes and keep what is true of them.

Scenes obey the rules of the model card: two boxes share
a clear part or leave a clear gap, shapes whose boxes share a part touch, nothing covers a middle.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from tools.small_model.rules import Box, Margins, Relation, boxes_overlap, relation
from tools.small_model.shapes import COLOURS, SHAPES, background, colour_rgb, shape_mask

SIZES = (0.20, 0.40)
"""Sides of the shapes, as fractions of the image's shorter side."""
MIDDLE = 0.03
"""Nothing covers the middle of a shape: a square of this half side, as a fraction of the shorter side."""


@dataclass(frozen=True)
class SceneObject:
    """One drawn shape: its box in pixels, the image's own."""

    id: int
    class_name: str
    colour: str
    bbox: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """An image and all that was drawn on it; ``owner`` holds the id of the shape at each pixel, or 0."""

    image: Image.Image
    objects: tuple[SceneObject, ...]
    owner: np.ndarray

    def relation(self, subject: SceneObject, object_: SceneObject, margins: Margins) -> Relation | None:
        """What holds between two of its shapes; None where a rule is silent."""
        return relation(subject.bbox, object_.bbox, self.image.size, margins)

    def clear_pairs(self, margins: Margins) -> list[tuple[SceneObject, SceneObject, Relation]]:
        """All ordered pairs of shapes on which no rule is silent."""
        pairs = ((s, o) for s in self.objects for o in self.objects if s is not o)
        found = ((s, o, self.relation(s, o, margins)) for s, o in pairs)
        return [(s, o, r) for s, o, r in found if r is not None]


def draw_scene(rng: np.random.Generator, size: tuple[int, int], margins: Margins) -> Scene:
    """A fresh scene of ``size`` (width, height) with two to five shapes and at least one clear pair."""
    while True:
        scene = _draw_once(rng, size, margins)
        if scene.clear_pairs(margins):
            return scene


def random_size(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height of an image, 112 to 160 pixels each."""
    width, height = rng.integers(112, 161, 2)
    return int(width), int(height)


def _draw_once(rng: np.random.Generator, size: tuple[int, int], margins: Margins) -> Scene:
    width, height = size
    pixels = background(rng, width, height)
    owner = np.zeros((height, width), np.uint8)
    smooth, outlined = rng.random() < 0.7, rng.random() < 0.35
    objects: list[SceneObject] = []
    for class_name in _class_names(rng):
        bbox = _place(rng, class_name, objects, owner, margins)
        if bbox is None:
            continue
        made = SceneObject(len(objects) + 1, class_name, str(rng.choice(list(COLOURS))), bbox)
        objects.append(made)
        _paint(rng, pixels, owner, made, smooth=smooth, outlined=outlined)
    return Scene(_finish(rng, pixels), tuple(objects), owner)


def _class_names(rng: np.random.Generator) -> list[str]:
    twice = rng.random() < 0.3
    return [str(name) for name in rng.choice(list(SHAPES), rng.integers(2, 6), replace=twice)]


def _place(
    rng: np.random.Generator, class_name: str, objects: list[SceneObject], owner: np.ndarray, margins: Margins
) -> tuple[int, int, int, int] | None:
    height, width = owner.shape
    for _ in range(12):
        w, h = _sides(rng, min(width, height))
        x, y = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
        if objects and rng.random() < 0.5:
            x, y = _beside(rng, objects[rng.integers(len(objects))].bbox, (w, h), (width, height))
        bbox = (int(x), int(y), int(x + w), int(y + h))
        if _allowed(class_name, bbox, objects, owner, margins):
            return bbox
    return None


def _sides(rng: np.random.Generator, shorter: int) -> tuple[int, int]:
    side = rng.uniform(*SIZES) * shorter
    stretch = rng.uniform(0.9, 1.1) if rng.random() < 0.3 else 1.0
    return round(side * stretch), round(side)


def _beside(rng: np.random.Generator, other: Box, sides: tuple[int, int], size: tuple[int, int]) -> list[int]:
    corner = []
    for axis in (0, 1):
        reach = (other[axis + 2] - other[axis] + sides[axis]) / 2
        middle = (other[axis] + other[axis + 2]) / 2 + rng.uniform(-1.1, 1.1) * reach
        corner.append(int(np.clip(middle - sides[axis] / 2, 0, size[axis] - sides[axis])))
    return corner


def _allowed(
    class_name: str,
    bbox: tuple[int, int, int, int],
    objects: list[SceneObject],
    owner: np.ndarray,
    margins: Margins,
) -> bool:
    height, width = owner.shape
    x1, y1, x2, y2 = bbox
    under = owner[y1:y2, x1:x2][shape_mask(class_name, x2 - x1, y2 - y1, smooth=False) > 0]
    for other in objects:
        overlap = boxes_overlap(bbox, other.bbox, (width, height), margins.touch)
        shared = int((under == other.id).sum())
        if overlap is None or overlap != (shared >= 12):
            return False
        if overlap and (_hides(class_name, bbox, other, owner) or shared > 0.5 * (owner == other.id).sum()):
            return False
    return True


def _hides(class_name: str, bbox: tuple[int, int, int, int], other: SceneObject, owner: np.ndarray) -> bool:
    """Whether the shape in ``bbox`` would cover a part of the middle of ``other``."""
    cover = np.zeros(owner.shape, bool)
    x1, y1, x2, y2 = bbox
    cover[y1:y2, x1:x2] = shape_mask(class_name, x2 - x1, y2 - y1, smooth=False) > 0
    reach = max(2, round(MIDDLE * min(owner.shape)))
    x, y = (other.bbox[0] + other.bbox[2]) // 2, (other.bbox[1] + other.bbox[3]) // 2
    return bool(cover[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1].any())


def _paint(
    rng: np.random.Generator,
    pixels: np.ndarray,
    owner: np.ndarray,
    made: SceneObject,
    *,
    smooth: bool,
    outlined: bool,
) -> None:
    x1, y1, x2, y2 = made.bbox
    mask = shape_mask(made.class_name, x2 - x1, y2 - y1, smooth=smooth)
    fill = colour_rgb(rng, made.colour)
    part = pixels[y1:y2, x1:x2]
    if outlined:
        part += mask[:, :, None] * (fill * rng.uniform(0.2, 0.6) - part)
        mask = _shrunk(made, mask, smooth=smooth)
    part += mask[:, :, None] * (fill - part)
    owner[y1:y2, x1:x2][shape_mask(made.class_name, x2 - x1, y2 - y1, smooth=False) > 0] = made.id


def _shrunk(made: SceneObject, mask: np.ndarray, *, smooth: bool) -> np.ndarray:
    height, width = mask.shape
    edge = 1 + min(width, height) // 32
    inner = np.zeros_like(mask)
    small = shape_mask(made.class_name, width - 2 * edge, height - 2 * edge, smooth=smooth)
    inner[edge : height - edge, edge : width - edge] = small
    return inner


def _finish(rng: np.random.Generator, pixels: np.ndarray) -> Image.Image:
    """Light, noise, blur and JPEG traces, each now and then."""
    if rng.random() < 0.5:
        pixels = pixels * rng.uniform(0.92, 1.08)
    if rng.random() < 0.4:
        pixels = pixels + rng.normal(0, rng.uniform(1, 9), pixels.shape)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if rng.random() < 0.15:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    if rng.random() < 0.2:
        kept = io.BytesIO()
        image.save(kept, "JPEG", quality=int(rng.integers(60, 96)))
        image = Image.open(kept).convert("RGB")
    return image
