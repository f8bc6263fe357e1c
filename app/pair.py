"""A pair: two objects of one image and the predicates to describe. It keeps its type from the reader to the export."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Candidate:
    """A predicate that stage 1 proposed for a pair, and how sure it was."""

    predicate: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Pair:
    """Two objects of one image and the predicates to describe."""

    image_id: str  # as it is compared: 1 and "1.0" are "1"
    image_id_json: int | float | str  # as the second input wrote it, for the export
    image_path: str  # relative to the image root, posix separators
    subject: str  # class names as stage 1 wrote them
    object: str
    subject_id: str | None  # as they are compared; None where names identify the pair
    object_id: str | None
    subject_id_json: int | float | str | None  # as the second input wrote them, for the export
    object_id_json: int | float | str | None
    subject_obj: dict[str, Any]  # the object's record of the second input, all its keys
    object_obj: dict[str, Any]
    candidates: tuple[Candidate, ...]  # the top k, most similar first, ties in order of appearance
    has_gt: bool  # over all candidates of the pair, the dropped ones too
    gt_predicates: tuple[str, ...]
    extent: tuple[float, float]  # how far right and down the boxes of the image reach, for ``frame_of``
    position: int  # sorts pairs of one source into the order of the export
    frame: str | None = None  # that the boxes are in, where the reader has seen the image's header
    frame_size: tuple[int, int] | None = None  # width and height of that frame, likewise
    image_stamp: tuple[int, int] = (0, 0)  # bytes and time of change (ns) of the image's file; zeros: not looked at
    draws: tuple[
        tuple[str, int, int], ...
    ] = ()  # what to describe once more: predicate ("" the pair), draw, new tokens
    verify: tuple[str, int] | None = None  # whether each relation holds is asked, too: in which language, and how often

    @property
    def key(self) -> str:
        """The pair's public identity as JSON text, of one form for names and another for ids."""
        if self.subject_id is None:
            return json.dumps(["name", self.image_id, self.subject, self.object])
        return json.dumps(["id", self.image_id, self.subject_id, self.object_id])

    @property
    def key_hash(self) -> str:
        """32 hexadecimal digits that stand for ``key`` where its length must be bounded."""
        return hashlib.blake2b(self.key.encode(), digest_size=16).hexdigest()

    @property
    def subject_box(self) -> Any:
        """The subject's box as the second input wrote it, in pixels: left, top, right, bottom."""
        return self.subject_obj["bbox"]

    @property
    def object_box(self) -> Any:
        """The object's box, likewise."""
        return self.object_obj["bbox"]

    @property
    def predicates(self) -> tuple[str, ...]:
        """The predicates to describe, best first; one may stand there twice."""
        return tuple(candidate.predicate for candidate in self.candidates)

    @property
    def request(self) -> str:
        """32 hexadecimal digits over all of the pair that determines its texts, within one run's settings.

        Two pairs of equal request ask the same of the model, but for an image that was changed without a trace in its
        file's size and time.
        """
        frame = self.frame or list(self.extent)
        about = [self.image_path, self.image_stamp, frame, self.subject, self.object, self.subject_box, self.object_box]
        asked = [] if self.verify is None else [self.verify]  # so that requests of the time before stay what they were
        text = json.dumps([*about, self.predicates, self.draws, *asked])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def draw(self, predicate: str | None) -> tuple[int, int]:
        """Which draw of a description is wanted, and its limit of new tokens: (0, 0) for the first and the run's."""
        return next(((number, most) for name, number, most in self.draws if name == (predicate or "")), (0, 0))

    def asked_like(self, before: Pair) -> Pair:
        """The pair with what was asked besides of its earlier version: other draws, and whether its relations hold."""
        draws = tuple(draw for draw in before.draws if draw[0] in ("", *self.predicates))
        same_question = before.verify and (self.verify is None or self.verify[0] == before.verify[0])
        return replace(self, draws=draws or self.draws, verify=before.verify if same_question else self.verify)

    def to_json(self) -> dict[str, Any]:
        """All of it but ``position``, as the database keeps it."""
        size = None if self.frame_size is None else list(self.frame_size)
        more: dict[str, Any] = {"frame": self.frame, "frame_size": size, "image_stamp": list(self.image_stamp)}
        if self.draws:
            more["draws"] = [list(draw) for draw in self.draws]
        if self.verify:
            more["verify"] = list(self.verify)
        return {
            "image_id": self.image_id_json,
            "image_path": self.image_path,
            "identity": self.key,
            "subject": self.subject,
            "object": self.object,
            "subject_id": self.subject_id_json,
            "object_id": self.object_id_json,
            "subject_obj": self.subject_obj,
            "object_obj": self.object_obj,
            "candidates": [[candidate.predicate, candidate.similarity] for candidate in self.candidates],
            "has_gt": self.has_gt,
            "gt_predicates": list(self.gt_predicates),
            "extent": list(self.extent),
            **more,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any], position: int = 0) -> Self:
        """The pair that ``to_json`` made the value of. Raises KeyError and ValueError for any other value."""
        form, image_id, subject, object_ = json.loads(value["identity"])
        by_id = form == "id"
        right, bottom = value["extent"]
        size, mtime_ns = value.get("image_stamp", (0, 0))
        width, height = value.get("frame_size") or (0, 0)
        verify = value.get("verify")
        return cls(
            image_id=image_id,
            image_id_json=value["image_id"],
            image_path=value["image_path"],
            subject=value["subject"],
            object=value["object"],
            subject_id=subject if by_id else None,
            object_id=object_ if by_id else None,
            subject_id_json=value["subject_id"],
            object_id_json=value["object_id"],
            subject_obj=value["subject_obj"],
            object_obj=value["object_obj"],
            candidates=tuple(Candidate(predicate, similarity) for predicate, similarity in value["candidates"]),
            has_gt=value["has_gt"],
            gt_predicates=tuple(value["gt_predicates"]),
            extent=(float(right), float(bottom)),
            position=position,
            frame=value.get("frame"),
            frame_size=(width, height) if width else None,
            image_stamp=(size, mtime_ns),
            draws=tuple((name, number, most) for name, number, most in value.get("draws", ())),
            verify=None if verify is None else (verify[0], verify[1]),
        )


def verifications(pair: Pair, descriptions: Sequence[dict[str, Any]]) -> list[float | None]:
    """P(relation holds) of each of a pair's candidates, in their order, out of its stored descriptions.

    None where it was not asked, or the model gave no answer. A description of one predicate holds a number, one of a
    whole pair a list.
    """
    if len(descriptions) == len(pair.candidates) and not isinstance(descriptions[0].get("verification"), list):
        return [each.get("verification") for each in descriptions]
    return list(descriptions[0].get("verification") or [None] * len(pair.candidates))
