"""Shapes, colours and backgrounds: the pixels of a scene, and nothing of what they mean.

A shape fills its box: its outermost points lie on all four sides, and the box's middle is inside the shape.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

Polygon = list[tuple[float, float]]

SUPERSAMPLING = 4


def _fill_unit(points: Polygon) -> Polygon:
    xs, ys = zip(*points, strict=True)
    low_x, low_y, width, height = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    return [((x - low_x) / width, (y - low_y) / height) for x, y in points]


def _regular(corners: int, inner: float = 1.0) -> Polygon:
    step = math.pi / corners
    radii = [1.0 if k % 2 == 0 else inner for k in range(2 * corners)]
    points = [(r * math.sin(k * step), -r * math.cos(k * step)) for k, r in enumerate(radii)]
    return _fill_unit(points if inner < 1.0 else points[::2])


SHAPES: dict[str, Polygon] = {
    "circle": _fill_unit([(math.cos(k * math.pi / 40), math.sin(k * math.pi / 40)) for k in range(80)]),
    "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "diamond": [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)],
    "star": _regular(5, inner=0.45),
    "cross": [(.33, 0), (.67, 0), (.67, .33), (1, .33), (1, .67), (.67, .67), (.67, 1), (.33, 1), (.33, .67),
              (0, .67), (0, .33), (.33, .33)],
    "hexagon": _regular(6),
    "pentagon": _regular(5),
}  # fmt: skip
"""Corners of each shape in the unit square, y downwards."""

COLOURS: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-7, 7), (0.75, 1.0), (0.70, 1.0)),
    "orange": ((24, 39), (0.80, 1.0), (0.85, 1.0)),
    "yellow": ((51, 61), (0.65, 1.0), (0.85, 1.0)),
    "green": ((100, 140), (0.50, 1.0), (0.45, 1.0)),
    "cyan": ((175, 189), (0.60, 1.0), (0.75, 1.0)),
    "blue": ((220, 242), (0.65, 1.0), (0.60, 1.0)),
    "purple": ((275, 303), (0.55, 1.0), (0.45, 0.75)),
    "pink": ((325, 350), (0.25, 0.60), (0.90, 1.0)),
}
"""Ranges of hue (degrees), saturation and value of each named colour."""


def colour_rgb(rng: np.random.Generator, name: str) -> np.ndarray:
    """A colour drawn from the range of ``name``: three floats in 0..255."""
    hue, saturation, value = (rng.uniform(*bounds) for bounds in COLOURS[name])
    return hsv_rgb(hue, saturation, value)


def hsv_rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """Hue in degrees, the rest in 0..1, to three floats in 0..255."""
    k = (np.array([5.0, 3.0, 1.0]) + hue / 60.0) % 6.0
    return 255.0 * value * (1.0 - saturation * np.clip(np.minimum(k, 4.0 - k), 0.0, 1.0))


def shape_mask(name: str, width: int, height: int, *, smooth: bool) -> np.ndarray:
    """How much of each pixel of its box a shape covers: (height, width) floats, 0 or 1 unless smooth."""
    big = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    corners = [(x * (big.width - 1), y * (big.height - 1)) for x, y in SHAPES[name]]
    ImageDraw.Draw(big).polygon(corners, fill=255)
    mask = np.asarray(big.resize((width, height), Image.Resampling.BOX), dtype=np.float32) / 255.0
    return mask if smooth else (mask >= 0.5).astype(np.float32)


def background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A plain, graded, striped, chequered or blotchy ground of weak colours: (height, width, 3) floats."""
    first, second = _ground_colour(rng), _ground_colour(rng)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    kind = rng.integers(5)
    if kind == 0:
        share = np.zeros((height, width), np.float32)
    elif kind == 1:
        turn = rng.uniform(0, 2 * math.pi)
        along = x / width * math.cos(turn) + y / height * math.sin(turn)
        share = (along - along.min()) / np.ptp(along)
    elif kind == 2:
        turn, period = rng.uniform(0, math.pi), rng.uniform(8, 40)
        share = (np.sin((x * math.cos(turn) + y * math.sin(turn)) * 2 * math.pi / period) > 0).astype(np.float32)
    elif kind == 3:
        cell = rng.integers(6, 30)
        share = ((x // cell + y // cell) % 2).astype(np.float32)
    else:
        coarse = rng.uniform(0, 1, (rng.integers(3, 8), rng.integers(3, 8))).astype(np.float32)
        share = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    if kind > 1 and rng.random() < 0.5:
        second = first + (second - first) * 0.4
    mixed: np.ndarray = first + (second - first) * np.clip(share, 0, 1)[:, :, None]
    return mixed


def _ground_colour(rng: np.random.Generator) -> np.ndarray:
    value = rng.uniform(0.05, 1.0)
    return hsv_rgb(rng.uniform(0, 360), rng.uniform(0, 0.16 if value > 0.5 else 0.35), value)
