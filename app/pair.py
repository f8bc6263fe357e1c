"""A pair: two objects of one image and the predicates to describe."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any


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
    position: int  # sorts pairs into the order of the export

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


def as_row(pair: Pair) -> dict[str, Any]:
    """The columns of the pairs table, but for the ids."""
    return {
        "key": pair.key_hash,
        "position": pair.position,
        "image_id": pair.image_id,
        "image_path": pair.image_path,
        "subject": pair.subject,
        "object": pair.object,
        "subject_id": pair.subject_id,
        "object_id": pair.object_id,
        "payload": {
            "image_id": pair.image_id_json,
            "image_path": pair.image_path,
            "identity": pair.key,
            "subject": pair.subject,
            "object": pair.object,
            "subject_id": pair.subject_id_json,
            "object_id": pair.object_id_json,
            "subject_obj": pair.subject_obj,
            "object_obj": pair.object_obj,
            "candidates": [[candidate.predicate, candidate.similarity] for candidate in pair.candidates],
            "has_gt": pair.has_gt,
            "gt_predicates": list(pair.gt_predicates),
            "extent": list(pair.extent),
        },
    }
