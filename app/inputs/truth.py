"""Which relations hold in an image by the inputs, and what became of the candidates that say so.

Of each true relation it is kept at which place stage 1 has it among the image's candidates and whether that candidate
is still there after the cut and the drops: recall can then be counted without stage 1's whole file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from app.inputs.drops import Drops, Reason
from app.inputs.ids import canonical_id, is_storable
from app.inputs.stage1 import NO_RELATION, Group, Identity
from app.pair import Pair

Fate = Literal["kept", "cut", "dropped"]
Relation = tuple[str, str, str, int | None, int | None, Fate | None]
"""Subject, object, predicate; the place of the first candidate that says so, from 1, and its place where only each
pair's best candidate counts; what became of that candidate. None where no candidate says so."""


@dataclass(frozen=True, slots=True)
class ImageTruth:
    """The true relations of one image, each once."""

    image_id: str
    relations: list[Relation] | None  # by objects' ids, of the second input; None where it has no list
    proposed: list[Relation]  # by pairs' identities (``identity_ends``), of the candidates' own gt_predicates


TruthSink = Callable[[ImageTruth], None]
"""What takes each image's truth as it is read."""


def canonical_predicate(predicate: str) -> str:
    """The text by which predicates are compared: without capitals, and spaces at its ends or doubled inside."""
    return " ".join(predicate.lower().split())


def identity_ends(pair: Pair) -> tuple[str, str]:
    """What tells a pair's two objects apart in ``ImageTruth.proposed``."""
    if pair.subject_id is None or pair.object_id is None:
        return f"name:{pair.subject}", f"name:{pair.object}"
    return f"id:{pair.subject_id}", f"id:{pair.object_id}"


def object_ends(pair: Pair) -> tuple[str | None, str | None]:
    """The ids of a pair's two objects, as in ``ImageTruth.relations``; None for one without."""
    return canonical_id(pair.subject_obj.get("id")), canonical_id(pair.object_obj.get("id"))


def image_truth(
    image_id: str, groups: Mapping[Identity, Group], kept: Mapping[Identity, Pair], record: Any, drops: Drops
) -> ImageTruth:
    """One image's truth: its candidates by pair, those pairs that were ``kept``, its record of the second input."""
    found = list(_candidates(groups, kept))
    by_identity = _Places((f"{form}:{subject}", f"{form}:{object_}") for form, subject, object_ in groups)
    by_identity.fill(found)
    proposed = [
        (f"{form}:{subject}", f"{form}:{object_}", predicate)
        for (form, subject, object_), group in groups.items()
        for predicate in _distinct(group.gt_predicates)
    ]
    relations = None
    if isinstance(record, dict) and isinstance(record.get("relations"), list):
        ids, by_class = _objects(record)
        ends = (
            (subject, object_) if form == "id" else (by_class.get(subject), by_class.get(object_))
            for form, subject, object_ in groups
        )
        by_object = _Places(ends)
        by_object.fill(found)
        relations = by_object.of(list(dict.fromkeys(_relations(image_id, record["relations"], ids, drops))))
    return ImageTruth(image_id, relations, by_identity.of(proposed))


def _distinct(predicates: Mapping[str, None]) -> list[str]:
    plain = dict.fromkeys(map(canonical_predicate, predicates))
    return [each for each in plain if each not in ("", NO_RELATION)]


def _candidates(
    groups: Mapping[Identity, Group], kept: Mapping[Identity, Pair]
) -> Iterator[tuple[float, int, int, str, Fate]]:
    """All usable candidates: falling score, place in the file, number of the pair, predicate, what became of it."""
    for number, (identity, group) in enumerate(groups.items()):
        pair = kept.get(identity)
        best = sorted(range(len(group.proposals)), key=lambda at: -group.proposals[at][0])
        top = set(best[: len(pair.candidates)]) if pair else set()
        for at, (similarity, predicate) in enumerate(group.proposals):
            fate: Fate = "dropped" if pair is None else "kept" if at in top else "cut"
            yield -similarity, group.places[at], number, canonical_predicate(predicate), fate


class _Places:
    """Where stage 1 has each triplet, its pairs' objects told apart in one way."""

    def __init__(self, ends: Any) -> None:
        self._ends = list(ends)
        self._first: dict[tuple[Any, Any, str], tuple[int, int | None, Fate]] = {}

    def fill(self, candidates: list[tuple[float, int, int, str, Fate]]) -> None:
        """Number the candidates, best first."""
        alone: set[tuple[Any, Any]] = set()
        for rank, (_, _, number, predicate, fate) in enumerate(sorted(candidates), 1):
            ends = self._ends[number]
            rank_alone = None
            if ends not in alone:
                alone.add(ends)
                rank_alone = len(alone)
            self._first.setdefault((*ends, predicate), (rank, rank_alone, fate))

    def of(self, truth: list[tuple[str, str, str]]) -> list[Relation]:
        """The triplets with their places."""
        return [(*triplet, *self._first.get(triplet, (None, None, None))) for triplet in truth]


def _objects(record: dict[str, Any]) -> tuple[set[str], dict[str, str | None]]:
    """The ids of an image's objects, and the id of the last object of each class."""
    listed = record.get("objects")
    objects = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    ids = {canonical_id(each.get("id")) for each in objects} - {None}
    by_class = {str(each.get("class_name")): canonical_id(each.get("id")) for each in objects}
    return {each for each in ids if each is not None}, by_class


def _relations(image_id: str, relations: list[Any], ids: set[str], drops: Drops) -> Iterator[tuple[str, str, str]]:
    where = "second input, image {}, relation {}: {}"
    for place, relation in enumerate(relations, 1):
        value = relation if isinstance(relation, dict) else {}
        subject, object_ = canonical_id(value.get("subject_id")), canonical_id(value.get("object_id"))
        predicate = value.get("predicate")
        if subject is None or object_ is None or not isinstance(predicate, str) or not is_storable(predicate):
            drops.add(Reason.MALFORMED_RELATION, where, image_id, place, relation)
            continue
        plain = canonical_predicate(predicate)
        if plain in ("", NO_RELATION):
            continue
        if not {subject, object_} <= ids:
            drops.add(Reason.RELATION_WITHOUT_OBJECT, where, image_id, place, relation)
            continue
        yield subject, object_, plain
