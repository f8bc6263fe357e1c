"""The first input, stage 1's results: streamed image by image, candidates checked and grouped into pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, BinaryIO

from app.errors import InputError
from app.inputs.drops import Drops, Reason
from app.inputs.ids import canonical_id, is_storable
from app.inputs.json_stream import JsonStream

KEY = "per_image_top100_candidates"
NO_RELATION = "no relation"

Identity = tuple[str, str, str]
"""("name", subject, object) or ("id", subject_id, object_id)"""


@dataclass(slots=True)
class Group:
    """All candidates of one image that name one pair; made of readable candidates, usable or not."""

    place: int  # the pair's place in its image, by first appearance
    subject: str
    object: str
    proposals: list[tuple[float, str]] = field(default_factory=list)  # (similarity, predicate), as they came
    places: list[int] = field(default_factory=list)  # of the proposals among the image's candidates
    has_gt: bool = False
    gt_predicates: dict[str, None] = field(default_factory=dict)  # an ordered set
    only_no_relation: bool = True  # of what was not usable


class _Unusable(Exception):
    """A candidate cannot be used: why, which of its keys, and what is there."""

    def __init__(self, reason: Reason, key: str, value: object) -> None:
        super().__init__(reason)
        self.reason, self.key, self.value = reason, key, value


def read_images(file: BinaryIO, name: str, drops: Drops) -> Iterator[tuple[str, list[Any]]]:
    """Each image's key and list of candidates, in the file's order; other top-level keys are passed over.

    Raises:
        InputError: the file is not valid JSON, not an object, or lacks the candidates; this may come late.
    """
    stream = JsonStream(file, name)
    if stream.starts_with() != "{":
        raise InputError(name, "top level", stream.starts_with() or "an empty file", "expected an object")
    found = False
    for key in stream.members():
        if key != KEY:
            stream.skip()
        elif found:
            raise InputError(name, KEY, None, "stands in the file twice")
        else:
            found = True
            yield from _images_of(stream, name, drops)
    stream.end()
    if not found:
        raise InputError(name, KEY, None, "the file has no such key")


def group_candidates(image: str, candidates: list[Any], drops: Drops) -> dict[Identity, Group]:
    """An image's candidates by the pair that they name, pairs by first appearance.

    A pair's ground truth is gathered from all its candidates, also from those that are dropped. What is not
    usable is counted: a candidate that names no pair, one that is `no relation`, one without a usable
    predicate or similarity. A pair's list of proposals may so come out empty.
    """
    groups: dict[Identity, Group] = {}
    drops.candidates_read += len(candidates)
    for place, candidate in enumerate(candidates, 1):
        group = None
        try:
            identity = _identity(candidate)
            group = groups.get(identity)
            if group is None:
                group = groups[identity] = _new_group(candidate, len(groups))
            _add_ground_truth(group, candidate)
            group.proposals.append(_proposal(candidate))
            group.places.append(place)
        except _Unusable as why:
            if group is not None and why.reason is not Reason.NO_RELATION:
                group.only_no_relation = False
            drops.add(why.reason, "stage 1, image {}, candidate {}: {} is {}", image, place, why.key, why.value)
    return groups


def _images_of(stream: JsonStream, name: str, drops: Drops) -> Iterator[tuple[str, list[Any]]]:
    if stream.starts_with() != "{":
        raise InputError(name, KEY, None, "expected an object of images")
    for image in stream.members():
        candidates = stream.value()
        if isinstance(candidates, list):
            yield image, candidates
        else:
            drops.add(Reason.MALFORMED_IMAGE, "stage 1, image {}: not a list: {}", image, candidates)


def _identity(candidate: Any) -> Identity:
    if not isinstance(candidate, dict):
        raise _Unusable(Reason.MALFORMED_CANDIDATE, "candidate", candidate)
    subject, object_ = candidate.get("subject"), candidate.get("object")
    if not isinstance(subject, str):
        raise _Unusable(Reason.MALFORMED_CANDIDATE, "subject", subject)
    if not isinstance(object_, str):
        raise _Unusable(Reason.MALFORMED_CANDIDATE, "object", object_)
    subject_id, object_id = candidate.get("subject_id"), candidate.get("object_id")
    if subject_id is None and object_id is None:
        return "name", subject, object_
    if subject_id is None or object_id is None:
        missing = "subject_id" if subject_id is None else "object_id"
        raise _Unusable(Reason.ONE_ID, missing, None)
    return "id", _object_id("subject_id", subject_id), _object_id("object_id", object_id)


def _object_id(key: str, value: object) -> str:
    text = canonical_id(value)
    if text is None:
        raise _Unusable(Reason.MALFORMED_CANDIDATE, key, value)
    return text


def _new_group(candidate: dict[str, Any], place: int) -> Group:
    subject, object_ = candidate["subject"], candidate["object"]
    for key, name in (("subject", subject), ("object", object_)):
        if not name.strip() or not is_storable(name):
            raise _Unusable(Reason.MALFORMED_CANDIDATE, key, name)
    return Group(place, subject, object_)


def _add_ground_truth(group: Group, candidate: dict[str, Any]) -> None:
    has_gt = candidate.get("has_gt")
    if has_gt and has_gt in (True, 1):
        group.has_gt = True
    predicates = candidate.get("gt_predicates")
    if predicates and isinstance(predicates, list):
        for predicate in predicates:
            if isinstance(predicate, str) and is_storable(predicate):
                group.gt_predicates[predicate] = None


def _proposal(candidate: dict[str, Any]) -> tuple[float, str]:
    predicate = candidate.get("predicted_predicate")
    if predicate is None:
        predicate = NO_RELATION
    if not isinstance(predicate, str):
        raise _Unusable(Reason.MALFORMED_CANDIDATE, "predicted_predicate", predicate)
    against = _reason_against(predicate)
    if against is not None:
        raise _Unusable(against, "predicted_predicate", predicate)
    similarity = candidate.get("similarity", 0.0)
    if isinstance(similarity, float) and math.isfinite(similarity):
        return similarity, predicate
    return _whole_number(similarity), predicate


@lru_cache(maxsize=1024)  # a file repeats some dozens of predicates millions of times
def _reason_against(predicate: str) -> Reason | None:
    bare = predicate.strip().lower()
    if bare == NO_RELATION:
        return Reason.NO_RELATION
    return None if bare and is_storable(predicate) else Reason.MALFORMED_CANDIDATE


def _whole_number(similarity: object) -> float:
    # Null is no number: it is how pandas and JavaScript write NaN.
    if isinstance(similarity, int) and not isinstance(similarity, bool):
        with suppress(OverflowError):
            return float(similarity)
    raise _Unusable(Reason.BAD_SIMILARITY, "similarity", similarity)
