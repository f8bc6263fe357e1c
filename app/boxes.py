"""Bounding boxes: which are boxes at all, in which frame of an image they are, how a prompt writes them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, get_args

from app.errors import FarmError

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels; corners may still be in the wrong order."""

NormalisedBox = tuple[int, int, int, int]
"""Left, top, right, bottom in thousandths of the image's size: 0..999, left < right, top < bottom."""

Size = tuple[int, int]
"""Width and height in pixels."""

Frame = Literal["stored", "upright"]
"""An image as its file stores it, or turned upright as its EXIF orientation says."""

BoxFormat = Literal["xyxy", "xywh", "yxyx", "relative"]
"""How an input writes boxes: corners in pixels; a corner with width and height (COCO); corners with y before x;
corners in shares of the image's width and height."""

BOX_FORMATS: tuple[BoxFormat, ...] = get_args(BoxFormat)

SCALE = 1000


class BoxMalformed(FarmError, ValueError):
    """A bounding box is not four finite numbers."""


class BoxOutside(FarmError, ValueError):
    """A bounding box shares nothing with its image."""


def parse_box(value: object) -> Box:
    """The box that a JSON value holds.

    Raises:
        BoxMalformed: the value is not a list of four finite numbers (texts and booleans are none).
    """
    if not isinstance(value, list | tuple) or len(value) != 4:
        raise BoxMalformed("not a list of four numbers")
    x1, y1, x2, y2 = map(_finite, value)
    return x1, y1, x2, y2


def in_pixels(box: Box, form: BoxFormat, size: Size) -> Box:
    """A box of that form as left, top, right, bottom in pixels of an image of that size; whole numbers stay whole."""
    a, b, c, d = box
    match form:
        case "xywh":
            return a, b, a + c, b + d
        case "yxyx":
            return b, a, d, c
        case "relative":
            return a * size[0], b * size[1], c * size[0], d * size[1]
        case _:
            return box


def normalise_box(bbox: object, width: int, height: int) -> NormalisedBox:
    """A box in thousandths of an image's size, as the specification says it.

    Each coordinate is ``int(x / width * 1000)`` held within 0..999; corners in the wrong order are put right,
    and a box without extent is widened by one (to the left at the right border).

    Raises:
        BoxMalformed: it is not four finite numbers.
        BoxOutside: it lies wholly outside the image.
    """
    box = parse_box(bbox)
    if is_outside(box, (width, height)):
        raise BoxOutside(f"box {list(box)} lies outside the image of {width} x {height} pixels")
    left, right = _normalise_side(box[0], box[2], width)
    top, bottom = _normalise_side(box[1], box[3], height)
    return left, top, right, bottom


def centre(box: NormalisedBox) -> tuple[int, int]:
    """The middle of a normalised box, rounded down."""
    return (box[0] + box[2]) // 2, (box[1] + box[3]) // 2


def is_outside(box: Box, size: Size) -> bool:
    """Whether a box shares nothing with an image of that size; a box without extent on the border does."""
    return _side_is_outside(box[0], box[2], size[0]) or _side_is_outside(box[1], box[3], size[1])


def extent_of(boxes: Iterable[Box]) -> tuple[float, float]:
    """The farthest right and bottom that these boxes reach; (0, 0) without any."""
    right, bottom = 0.0, 0.0
    for x1, y1, x2, y2 in boxes:
        right, bottom = max(right, x1, x2), max(bottom, y1, y2)
    return right, bottom


def frame_of(extent: tuple[float, float], stored: Size, upright: Size) -> Frame:
    """The frame that an image's boxes are in: the stored one if they fit it, else the upright one.

    ``extent`` is that of all boxes of the image, so that all its pairs get one answer. Where they fit neither
    (a box over the border by a pixel), the frame that they exceed by less; in doubt the stored one.
    """
    return "stored" if _excess(extent, stored) <= _excess(extent, upright) else "upright"


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BoxMalformed("a coordinate is not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BoxMalformed("a coordinate is not finite")
    return number


def _normalise_side(a: float, b: float, length: int) -> tuple[int, int]:
    low, high = sorted((_normalise(a, length), _normalise(b, length)))
    if low < high:
        return low, high
    return (low, low + 1) if low < SCALE - 1 else (low - 1, low)


def _normalise(x: float, length: int) -> int:
    # Held within the image first: the product of a huge coordinate would overflow.
    return min(int(min(max(x, 0), length) / length * SCALE), SCALE - 1)


def _side_is_outside(a: float, b: float, length: int) -> bool:
    low, high = min(a, b), max(a, b)
    if low == high:
        return low < 0 or low > length
    return high <= 0 or low >= length


def _excess(extent: tuple[float, float], size: Size) -> float:
    return max(extent[0] - size[0], extent[1] - size[1], 0)
