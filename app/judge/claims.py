"""A statement on where one object is, and whether the boxes say otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Relation = Literal["left", "right", "above", "below", "on top", "inside", "overlapping"]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom; corners in order."""

_AXIS = {"left": (0, 1), "right": (0, -1), "above": (1, 1), "below": (1, -1)}
"""Which axis, and the sign with which the first object's centre comes before the other's."""

_LEAST = 0.05
"""Centres nearer than this share of the objects' mean extent are level: nothing is said of them."""
_CLEARLY = 0.25
"""How far apart they must be, likewise, for "not left of" to be wrong."""


@dataclass(frozen=True, slots=True)
class Claim:
    """That an object (0 the subject, 1 the object) stands so to the other one, or in the image where ``to`` is None."""

    relation: Relation
    of: int
    to: int | None
    holds: bool = True  # False: that it does not stand so


def is_contradicted(claim: Claim, boxes: tuple[Box, Box], size: tuple[float, float] | None) -> bool:
    """Whether the boxes say otherwise. ``size`` is the image's, width and height; None where nobody knows it."""
    box = boxes[claim.of]
    if claim.to is None:
        return size is not None and _elsewhere(claim, box, size)
    other = boxes[claim.to]
    if claim.relation in _AXIS:
        axis, sign = _AXIS[claim.relation]
        extent = ((box[axis + 2] - box[axis]) + (other[axis + 2] - other[axis])) / 2
        beyond = sign * (_centre(box, axis) - _centre(other, axis)) / max(extent, 1e-9)
        return beyond > _LEAST if claim.holds else beyond < -_CLEARLY
    if claim.relation == "on top":
        under = _centre(box, 1) > other[3]
        return under if claim.holds else False
    shared = _shared(box, other)
    if claim.relation == "inside":
        share = shared / max(_area(box), 1e-9)
        return share < 0.5 if claim.holds else share > 0.95
    return shared <= 0 if claim.holds else shared > 0.1 * min(_area(box), _area(other))


def _elsewhere(claim: Claim, box: Box, size: tuple[float, float]) -> bool:
    if claim.relation not in _AXIS or not claim.holds:
        return False
    axis, sign = _AXIS[claim.relation]
    return sign * (_centre(box, axis) / size[axis] - 0.5) > 0.1


def _centre(box: Box, axis: int) -> float:
    return (box[axis] + box[axis + 2]) / 2


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _shared(one: Box, other: Box) -> float:
    sides = (min(one[axis + 2], other[axis + 2]) - max(one[axis], other[axis]) for axis in (0, 1))
    width, height = (max(side, 0.0) for side in sides)
    return width * height
