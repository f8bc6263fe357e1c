"""What the model is asked: prompt templates as files, and the text that one makes of a pair.

A template is a text with placeholders in braces (``PLACEHOLDERS``); ``{{`` and ``}}`` are literal braces. It
gives one generation per predicate if it uses ``{top_predicate}``, one per pair if it uses
``{ranked_predicates}``. A prompt comes as segments that say which text is data (names, predicates), because
data must never become control tokens.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from app.boxes import NormalisedBox, Size, centre, normalise_box
from app.errors import TemplateError

Style = Literal["per-predicate", "per-pair"]
Segment = tuple[str, bool]
"""A piece of a prompt's text, and whether it is data."""

STYLES: tuple[Style, ...] = get_args(Style)
Language = Literal["zh", "en"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
FOLDER = Path(__file__).with_name("prompt_templates")

#: Each placeholder and what stands there.
PLACEHOLDERS = {
    "subject_name": "the subject's class name",
    "object_name": "the object's class name",
    "subj_center_x": "the middle of the subject's box, 0..999",
    "subj_center_y": "the middle of the subject's box, 0..999",
    "obj_center_x": "the middle of the object's box, 0..999",
    "obj_center_y": "the middle of the object's box, 0..999",
    "subject_bbox_str": "the subject's box, 'x1, y1, x2, y2' in 0..999",
    "object_bbox_str": "the object's box, 'x1, y1, x2, y2' in 0..999",
    "top_predicate": "the one predicate to describe (per-predicate)",
    "ranked_predicates": "all the pair's predicates, one a line: '1. on' (per-pair)",
}
_ANSWERS: dict[Language, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "zh": (("是",), ("否",)),
    "en": (("yes", "Yes"), ("no", "No")),
}
_LEAST_ANSWERED = 0.01
"""Of the probability of the next token that must lie on yes and no together."""
_REQUIRED = ("subject_name", "object_name")
_PREDICATES: dict[str, Style] = {"top_predicate": "per-predicate", "ranked_predicates": "per-pair"}
_PART = re.compile(r"\{\{|\}\}|\{[^{}\n]*\}|[{}]")


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt template, checked."""

    text: str  # as the file holds it, without the line feeds at its end
    style: Style
    hash: str  # 32 hexadecimal digits of the text
    parts: tuple[tuple[str, bool], ...]  # literal text, or the name of a placeholder (True)


class Described(Protocol):
    """What a prompt says of a pair; ``app.pair.Pair`` is one."""

    @property
    def subject(self) -> str:
        """The subject's class name."""
        ...

    @property
    def object(self) -> str:
        """The object's class name."""
        ...

    @property
    def subject_box(self) -> Any:
        """The subject's box in pixels of the frame whose size ``render`` is given."""
        ...

    @property
    def object_box(self) -> Any:
        """The object's box, likewise."""
        ...

    @property
    def predicates(self) -> tuple[str, ...]:
        """The top k, best first."""
        ...


def load_template(style_or_path: str | Path, language: Language = LANGUAGES[0]) -> Template:
    """A built-in template by its style and language, or any other by its file (UTF-8).

    Raises:
        TemplateError: the file cannot be read, or a placeholder in it is unknown, missing or contradictory.
    """
    of_language = "" if language == LANGUAGES[0] else f".{language}"  # the specified ones bear no language
    path = FOLDER / f"{style_or_path}{of_language}.txt" if style_or_path in STYLES else Path(style_or_path)
    try:
        text = path.read_text(encoding="utf-8-sig").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"{path}: the prompt template cannot be read ({error})") from error
    return parse_template(text, str(path))


@dataclass(frozen=True, slots=True)
class Question:
    """Whether a relation holds: what is asked, and how the answers begin that say so and that deny it."""

    template: Template  # per-predicate
    yes: tuple[str, ...]
    no: tuple[str, ...]

    @property
    def answers(self) -> tuple[str, ...]:
        """All beginnings, those that say so first."""
        return self.yes + self.no

    def probability(self, probabilities: Sequence[float]) -> float | None:
        """P(relation holds) from the probabilities of ``answers`` as next tokens: yes as a share of yes and no.

        None where the model would hardly say either: the share is noise then.
        """
        yes, total = sum(probabilities[: len(self.yes)]), sum(probabilities)
        return round(yes / total, 6) if total >= _LEAST_ANSWERED else None


@lru_cache(maxsize=len(LANGUAGES))
def load_question(language: Language) -> Question:
    """The built-in question in one language. It begins as that language's prompts do, so that they share a prefix."""
    path = FOLDER / f"question.{language}.txt"
    template = parse_template(path.read_text(encoding="utf-8").rstrip("\n"), str(path))
    return Question(template, *_ANSWERS[language])


def parse_template(text: str, name: str) -> Template:
    """A template out of its text; ``name`` is what errors call it.

    Raises:
        TemplateError: as for ``load_template``.
    """
    parts = tuple(_parts(text, name))
    used = {part for part, is_placeholder in parts if is_placeholder}
    for required in _REQUIRED:
        if required not in used:
            raise TemplateError(f"{name}: the placeholder {{{required}}} is missing")
    styles = [style for placeholder, style in _PREDICATES.items() if placeholder in used]
    if len(styles) != 1:
        what = "both are there" if styles else "both are missing"
        raise TemplateError(f"{name}: exactly one of {{top_predicate}} and {{ranked_predicates}} must be used; {what}")
    return Template(text, styles[0], hashlib.blake2b(text.encode(), digest_size=16).hexdigest(), parts)


def render(template: Template, pair: Described, predicate: str | None, size: Size) -> tuple[Segment, ...]:
    """The prompt for a pair, or for one predicate of it, over an image of that size.

    Neighbouring segments differ in whether they are data; joined, they are the prompt. ``predicate`` must be
    given for a per-predicate template and for no other.

    Raises:
        BoxMalformed: a box is not four finite numbers.
        BoxOutside: a box lies wholly outside the image.
    """
    if (predicate is None) == (template.style == "per-predicate"):
        raise ValueError(f"a {template.style} prompt was asked for with predicate {predicate!r}")
    values = _values(pair, predicate, size)
    segments = (
        segment
        for text, is_placeholder in template.parts
        for segment in (values[text] if is_placeholder else ((text, False),))
    )
    return tuple(
        ("".join(text for text, _ in run), is_data)
        for is_data, run in groupby((s for s in segments if s[0]), key=itemgetter(1))
    )


def _parts(text: str, name: str) -> Iterator[tuple[str, bool]]:
    done = 0
    for found in _PART.finditer(text):
        yield text[done : found.start()], False
        done = found.end()
        token = found[0]
        if token in ("{{", "}}"):
            yield token[0], False
        elif token[1:-1] in PLACEHOLDERS:
            yield token[1:-1], True
        else:
            line = text.count("\n", 0, found.start()) + 1
            known = ", ".join(PLACEHOLDERS)
            what = "a single brace (write it twice)" if len(token) == 1 else f"unknown placeholder {token}"
            raise TemplateError(f"{name}: line {line}: {what}; known are {known}")
    yield text[done:], False


def normalised_boxes(pair: Described, size: Size) -> tuple[NormalisedBox, NormalisedBox]:
    """The boxes of subject and object as prompts write them. Raises what ``normalise_box`` raises."""
    return normalise_box(pair.subject_box, *size), normalise_box(pair.object_box, *size)


def _values(pair: Described, predicate: str | None, size: Size) -> dict[str, tuple[Segment, ...]]:
    subject, object_ = normalised_boxes(pair, size)
    (subject_x, subject_y), (object_x, object_y) = centre(subject), centre(object_)
    ours = {
        "subj_center_x": str(subject_x),
        "subj_center_y": str(subject_y),
        "obj_center_x": str(object_x),
        "obj_center_y": str(object_y),
        "subject_bbox_str": _written(subject),
        "object_bbox_str": _written(object_),
    }
    return {placeholder: ((text, False),) for placeholder, text in ours.items()} | {
        "subject_name": ((pair.subject, True),),
        "object_name": ((pair.object, True),),
        "top_predicate": ((predicate or "", True),),
        "ranked_predicates": _ranked(pair.predicates),
    }


def _written(box: NormalisedBox) -> str:
    return ", ".join(map(str, box))


def _ranked(predicates: Sequence[str]) -> tuple[Segment, ...]:
    """The predicates numbered from 1, one a line; the numbers are ours, the predicates are data."""
    return tuple(
        segment
        for rank, predicate in enumerate(predicates, 1)
        for segment in ((f"{'' if rank == 1 else chr(10)}{rank}. ", False), (predicate, True))
    )
