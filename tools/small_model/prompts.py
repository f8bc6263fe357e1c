"""The specification's prompt over two boxes, as the farm itself writes it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from app.boxes import normalise_box
from app.prompts import Template, load_question, load_template, render
from tools.small_model.rules import Box


@dataclass(frozen=True)
class _Drawn:
    """A drawn pair as the prompt takes it."""

    subject: str
    object: str
    subject_box: list[float]
    object_box: list[float]
    predicates: tuple[str, ...]


def normalised(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box in thousandths of ``size`` (width, height): ordered ints in 0..999, never without extent."""
    return normalise_box(list(box), *size)


def prompt(names: tuple[str, str], boxes: tuple[Box, Box], size: tuple[int, int], predicate: str) -> str:
    """The user turn's text for (subject, object) in an image of ``size`` (width, height)."""
    view = _Drawn(names[0], names[1], list(boxes[0]), list(boxes[1]), (predicate,))
    return "".join(text for text, _ in render(_template(), view, predicate, size))


def question_prompt(names: tuple[str, str], boxes: tuple[Box, Box], size: tuple[int, int], predicate: str) -> str:
    """The user turn's text that asks whether a relation holds; arguments as for ``prompt``."""
    view = _Drawn(names[0], names[1], list(boxes[0]), list(boxes[1]), (predicate,))
    return "".join(text for text, _ in render(load_question("zh").template, view, predicate, size))


@lru_cache(maxsize=1)
def _template() -> Template:
    return load_template("per-predicate")
