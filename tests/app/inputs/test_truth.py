"""The true relations of each image: which they are, where stage 1 has them, and what became of its candidates."""

from __future__ import annotations

from typing import Any

from app.inputs.drops import Reason
from app.inputs.truth import ImageTruth
from tests.support.input_files import Inputs, candidate, image


def by_ids(subject: int, object_: int, predicate: str, similarity: float, **more: Any) -> dict[str, Any]:
    return candidate(predicate, similarity, subject_id=subject, object_id=object_, **more)


def relation(subject: Any, object_: Any, predicate: Any) -> dict[str, Any]:
    return {"subject_id": subject, "object_id": object_, "predicate": predicate}


def truth_of(inputs: Inputs, candidates: list[Any], relations: Any = None, **options: Any) -> ImageTruth:
    found: list[ImageTruth] = []
    more = {} if relations is None else {"relations": relations}
    inputs.read({"7": candidates}, [image(**more)], truths=found.append, **options)
    assert len(found) == 1
    return found[0]


def test_places_are_those_among_all_candidates_of_the_image(inputs: Inputs) -> None:
    candidates = [
        by_ids(1, 2, "on", 0.2),
        by_ids(3, 2, "near", 0.9),
        by_ids(1, 2, "Under ", 0.9),  # equal: as they came
        by_ids(1, 2, "no relation", 1.0),  # no prediction
        by_ids(1, 2, "near", 0.4),
    ]
    relations = [relation("1", 2.0, "on"), relation(1, 2, "under"), relation(2, 1, "on"), relation(1, 2, "on")]
    found = truth_of(inputs, candidates, relations, top_k=2)
    assert found.relations == [
        ("1", "2", "on", 4, None, "cut"),
        ("1", "2", "under", 2, 2, "kept"),
        ("2", "1", "on", None, None, None),
    ]


def test_names_stand_for_the_last_object_of_their_class(inputs: Inputs) -> None:
    found = truth_of(inputs, [candidate("on", 0.5)], [relation(3, 2, "on"), relation(1, 2, "on")])
    assert found.relations == [("3", "2", "on", 1, 1, "kept"), ("1", "2", "on", None, None, None)]


def test_what_a_dropped_pair_said_is_dropped(inputs: Inputs) -> None:
    found: list[ImageTruth] = []
    record = image(relations=[relation(1, 2, "on")])
    record["objects"] = [{"id": 1, "class_name": "man", "bbox": "?"}, record["objects"][1]]
    inputs.read({"7": [by_ids(1, 2, "on", 0.5)]}, [record], truths=found.append)
    assert found[0].relations == [("1", "2", "on", 1, 1, "dropped")]


def test_without_relations_the_candidates_own_truth_is_kept(inputs: Inputs) -> None:
    candidates = [candidate("on", 0.5, has_gt=True, gt_predicates=["on", "ON", "under"]), candidate("near", 0.9)]
    found = truth_of(inputs, candidates)
    assert found.relations is None
    assert found.proposed == [
        ("name:man", "name:dog", "on", 2, None, "kept"),
        ("name:man", "name:dog", "under", None, None, None),
    ]


def test_what_is_no_relation_is_counted_and_passed_over(inputs: Inputs) -> None:
    relations = [relation(1, 2, None), relation(1, 99, "on"), 3, relation(1, 2, "No relation"), relation(1, 2, "on")]
    found = truth_of(inputs, [by_ids(1, 2, "on", 0.5)], relations)
    assert found.relations == [("1", "2", "on", 1, 1, "kept")]
    assert inputs.drops.counts[Reason.MALFORMED_RELATION] == 2
    assert inputs.drops.counts[Reason.RELATION_WITHOUT_OBJECT] == 1


def test_an_image_that_the_second_input_lacks_has_no_relations(inputs: Inputs) -> None:
    found: list[ImageTruth] = []
    inputs.read({"8": [candidate("on", 0.5, gt_predicates=["on"])]}, truths=found.append)
    assert found == [ImageTruth("8", None, [("name:man", "name:dog", "on", 1, 1, "dropped")])]
