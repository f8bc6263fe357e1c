"""The truth of a drawn scene and the answer it asks for; the rules are those that the model card spells out.

Every rule reads the two boxes as fractions of the image's width and height, and leaves a margin in which it
says nothing, so that no answer hangs on a pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Box = tuple[float, float, float, float]

LEAN = 0.10
"""Centres further apart than this along an axis make a direction along that axis."""
NEAR = 0.35
"""Centres at most this far apart along both axes are near each other."""


@dataclass(frozen=True)
class Margins:
    """Half-widths of the bands in which a rule is silent, as fractions of the image."""

    lean: float = 0.02
    near: float = 0.03
    touch: float = 0.025


TRAINING_MARGINS = Margins(lean=0.01, near=0.015, touch=0.015)


@dataclass(frozen=True)
class Relation:
    """What holds between a subject and an object: ``horizontal`` and ``vertical`` are -1, 0 or 1."""

    horizontal: int
    vertical: int
    overlap: bool
    near: bool | None

    @property
    def direction(self) -> str:
        """The direction in words, as the answer has it."""
        return DIRECTIONS[self.horizontal, self.vertical]


DIRECTIONS = {
    (-1, -1): "to the upper left of", (0, -1): "above", (1, -1): "to the upper right of",
    (-1, 0): "to the left of", (1, 0): "to the right of",
    (-1, 1): "to the lower left of", (0, 1): "below", (1, 1): "to the lower right of",
}  # fmt: skip

FITS: dict[str, Callable[[Relation], bool | None]] = {
    "left of": lambda r: r.horizontal < 0,
    "right of": lambda r: r.horizontal > 0,
    "above": lambda r: r.vertical < 0,
    "below": lambda r: r.vertical > 0,
    "on": lambda r: r.vertical < 0 and r.overlap,
    "under": lambda r: r.vertical > 0 and r.overlap,
    "next to": lambda r: r.vertical == 0,
    "near": lambda r: r.near,
    "touching": lambda r: r.overlap,
    "overlapping": lambda r: r.overlap,
    "away from": lambda r: not r.overlap,
    "holding": lambda r: False,
}
"""Whether a predicate fits a relation; None where the rule is silent."""


def relation(subject: Box, object_: Box, size: tuple[int, int], margins: Margins) -> Relation | None:
    """What holds between two boxes in an image of ``size`` (width, height); None where a rule is silent."""
    dx, dy = (_centre(subject, axis) - _centre(object_, axis) for axis in (0, 1))
    horizontal, vertical = (_lean(d / size[axis], margins) for axis, d in enumerate((dx, dy)))
    overlap = boxes_overlap(subject, object_, size, margins.touch)
    if horizontal is None or vertical is None or overlap is None or horizontal == vertical == 0:
        return None
    reach = max(abs(dx) / size[0], abs(dy) / size[1])
    near = None if abs(reach - NEAR) < margins.near else reach < NEAR
    return Relation(horizontal, vertical, overlap, near)


def boxes_overlap(first: Box, second: Box, size: tuple[int, int], margin: float) -> bool | None:
    """True: the boxes share ``margin`` or more along both axes; False: a gap of ``margin`` parts them."""
    shared = [(min(first[a + 2], second[a + 2]) - max(first[a], second[a])) / size[a] for a in (0, 1)]
    if min(shared) >= margin:
        return True
    return False if min(shared) <= -margin else None


def answer(names: tuple[str, str], colours: tuple[str, str], found: Relation, predicate: str) -> str:
    """The two sentences that describe a relation; raises KeyError for a predicate without a rule."""
    touch = "they overlap" if found.overlap else "they are apart"
    verdict = "fits" if FITS[predicate](found) else "does not fit"
    return (
        f"The {colours[0]} {names[0]} is {found.direction} the {colours[1]} {names[1]}, and {touch}. "
        f'"{predicate}" {verdict}.'
    )


def _centre(box: Box, axis: int) -> float:
    return (box[axis] + box[axis + 2]) / 2


def _lean(distance: float, margins: Margins) -> int | None:
    if abs(abs(distance) - LEAN) < margins.lean:
        return None
    return 0 if abs(distance) < LEAN else (1 if distance > 0 else -1)
