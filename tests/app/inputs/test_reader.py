"""What becomes a pair, how it looks, and what is dropped under which reason."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app.errors import InputError
from app.inputs.drops import Drops
from app.inputs.reader import read_pairs
from app.pair import Candidate
from tests.support.input_files import OBJECTS, Inputs, candidate, image


def test_a_pair_holds_what_the_specification_says(inputs: Inputs) -> None:
    [pair] = inputs.read({"7": [candidate("on", 0.85, has_gt=True, gt_predicates=["on"])]})
    assert (pair.image_id, pair.image_id_json, pair.image_path) == ("7", 7, "a.jpg")
    assert (pair.subject, pair.object, pair.subject_id, pair.object_id) == ("man", "dog", None, None)
    assert pair.object_obj == OBJECTS[1]
    assert pair.candidates == (Candidate("on", 0.85),)
    assert (pair.has_gt, pair.gt_predicates) == (True, ("on",))
    assert pair.key == '["name", "7", "man", "dog"]'
    assert len(pair.key_hash) == 32


def test_the_last_object_of_a_class_wins(inputs: Inputs) -> None:
    [pair] = inputs.read({"7": [candidate()]})
    assert pair.subject_obj["id"] == 3


def test_candidates_are_sorted_ties_in_order_of_appearance_and_cut_at_top_k(inputs: Inputs) -> None:
    given = [("a", 0.1), ("b", 0.9), ("c", 0.5), ("d", 0.9), ("e", 0.5), ("f", 1)]
    [pair] = inputs.read({"7": [candidate(*c) for c in given]}, top_k=4)
    assert [c.predicate for c in pair.candidates] == ["f", "b", "d", "c"]
    assert inputs.reasons == {"BELOW_TOP_K": 2}


def test_a_predicate_that_stands_there_twice_stays_twice(inputs: Inputs) -> None:
    [pair] = inputs.read({"7": [candidate("on", 0.2), candidate("on", 0.9)]})
    assert pair.candidates == (Candidate("on", 0.9), Candidate("on", 0.2))


def test_ground_truth_is_gathered_over_all_candidates_of_the_pair(inputs: Inputs) -> None:
    [pair] = inputs.read(
        {
            "7": [
                candidate("no relation", gt_predicates=["under"]),
                candidate("on", 0.9, has_gt=False, gt_predicates=["on", "under"]),
                candidate("at", "broken", has_gt=True, gt_predicates=None),
                candidate("by", 0.1, gt_predicates=["by", 5, "a\0b"]),
            ]
        },
        top_k=1,
    )
    assert (pair.has_gt, pair.gt_predicates) == (True, ("under", "on", "by"))


@pytest.mark.parametrize("written", [7, "7", 7.0, "7.0"])
@pytest.mark.parametrize("key", ["7", "7.0"])
def test_image_ids_match_as_text_and_keep_their_type(inputs: Inputs, written: Any, key: str) -> None:
    [pair] = inputs.read({key: [candidate()]}, [image(written)])
    assert pair.image_id == "7"
    assert json.dumps(pair.image_id_json) == json.dumps(written)


@pytest.mark.parametrize("written", ["07", " 7", "7.00", 7.5, True, None, [7], float("nan"), 1e999, "7\0"])
def test_other_ids_do_not_match(inputs: Inputs, written: Any) -> None:
    assert inputs.read({"7": [candidate()]}, [image(written)]) == []
    assert inputs.reasons["IMAGE_NOT_IN_INPUT"] == 1


@pytest.mark.parametrize("predicate", ["no relation", "No Relation", " no relation\n", None])
def test_no_relation_is_dropped_and_with_it_a_pair_that_has_nothing_else(inputs: Inputs, predicate: Any) -> None:
    other = candidate(subject="dog", object="man")
    [pair] = inputs.read({"7": [candidate(predicate), other]})
    assert pair.subject == "dog"
    assert inputs.reasons == {"NO_RELATION": 1, "ONLY_NO_RELATION": 1}


def test_what_is_absent_counts_as_no_relation_and_zero(inputs: Inputs) -> None:
    names = {"subject": "man", "object": "dog"}
    [pair] = inputs.read({"7": [names, names | {"predicted_predicate": "on"}]})
    assert pair.candidates == (Candidate("on", 0.0),)
    assert inputs.reasons == {"NO_RELATION": 1}


@pytest.mark.parametrize("similarity", [math.nan, math.inf, "0.5", None, True, [0.5], 10**400, {}])
def test_a_similarity_that_is_no_number_drops_its_candidate(inputs: Inputs, similarity: Any) -> None:
    [pair] = inputs.read({"7": [candidate("on", similarity), candidate("by", 0.1)]})
    assert pair.candidates == (Candidate("by", 0.1),)
    assert inputs.reasons == {"BAD_SIMILARITY": 1}
    [example] = inputs.drops.as_dict()["examples"]["similarity is not a number"]
    assert example.startswith("stage 1, image '7', candidate 1: 'similarity' is ")


def test_a_pair_left_without_usable_candidates_says_so(inputs: Inputs) -> None:
    assert inputs.read({"7": [candidate("on", "x"), candidate("no relation")]}) == []
    assert inputs.reasons == {"BAD_SIMILARITY": 1, "NO_RELATION": 1, "NO_USABLE_CANDIDATE": 1}


@pytest.mark.parametrize(
    "bad",
    [
        5,
        None,
        [],
        {},
        candidate(subject=None),
        candidate(object=3),
        candidate(subject=" "),
        candidate(""),
        candidate(4),
        candidate("a\0b"),
        candidate(object="dog\ud800"),
        candidate(subject_id=[1], object_id=2),
        candidate(subject_id=True, object_id=2),
    ],
)
def test_a_malformed_candidate_does_not_stop_the_good_ones(inputs: Inputs, bad: Any) -> None:
    [pair] = inputs.read({"7": [bad, candidate("by")]})
    assert pair.candidates == (Candidate("by", 0.5),)
    assert inputs.reasons == {"MALFORMED_CANDIDATE": 1}


def test_ids_identify_the_pair_and_its_objects(inputs: Inputs) -> None:
    by_id = [candidate(subject_id=1, object_id=2), candidate(subject_id="3", object_id=2.0), candidate()]
    first, second, by_name = inputs.read({"7": by_id})
    assert [first.subject_obj["id"], second.subject_obj["id"]] == [1, 3]
    assert (second.subject_id, second.object_id) == ("3", "2")
    assert (second.subject_id_json, second.object_id_json) == (3, 2)
    assert first.key == '["id", "7", "1", "2"]'
    assert len({first.key_hash, second.key_hash, by_name.key_hash}) == 3


def test_names_serve_only_where_both_ids_are_missing(inputs: Inputs) -> None:
    half = candidate(subject_id=1)
    absent = candidate(subject_id=9, object_id=2)
    null = candidate(subject_id=None, object_id=None)
    [pair] = inputs.read({"7": [half, absent, null]})
    assert pair.subject_id is None
    assert inputs.reasons == {"ONE_ID": 1, "SUBJECT_NOT_FOUND": 1}


def test_pairs_sort_into_the_order_of_the_second_input(inputs: Inputs) -> None:
    reverse = candidate(subject="dog", object="man")
    pairs = inputs.read(
        {"2": [candidate()], "1": [candidate("no relation"), reverse, candidate("by")]},
        [image(1), image(2)],
    )
    in_order = sorted(pairs, key=lambda pair: pair.position)
    assert [(p.image_id, p.subject) for p in in_order] == [("1", "man"), ("1", "dog"), ("2", "man")]


@pytest.mark.parametrize("second", ["7", "7.0"])
def test_an_image_that_comes_twice_in_stage_1_is_taken_once(inputs: Inputs, second: str) -> None:
    one, two = json.dumps([candidate("on")]), json.dumps([candidate("by"), candidate("at")])
    text = f'{{"per_image_top100_candidates": {{"7": {one}, "{second}": {two}}}}}'
    [pair] = inputs.read(text)
    assert pair.candidates == (Candidate("on", 0.5),)
    assert inputs.reasons == {"REPEATED_IN_STAGE1": 2}


def test_an_image_entered_twice_is_used_if_both_say_the_same(inputs: Inputs) -> None:
    [pair] = inputs.read({"7": [candidate()]}, [image(7), image("7"), image(8)])
    assert pair.image_id_json == 7
    assert inputs.reasons == {"REPEATED_IMAGE": 1}


def test_an_image_entered_twice_with_different_content_is_ambiguous(inputs: Inputs) -> None:
    [pair] = inputs.read({"7": [candidate()], "8": [candidate()]}, [image(7), image(8), image(7, path="b.jpg")])
    assert pair.image_id == "8"
    assert inputs.reasons == {"IMAGE_AMBIGUOUS": 1}


@pytest.mark.parametrize("bad", [5, None, [], {}, {"image_id": None}, {"image_id": [7]}])
def test_a_malformed_image_entry_does_not_stop_the_good_ones(inputs: Inputs, bad: Any) -> None:
    [pair] = inputs.read({"7": [candidate()]}, [bad, image(7)])
    assert pair.position == 1 << 20
    assert inputs.reasons == {"MALFORMED_IMAGE": 1}


@pytest.mark.parametrize("bad", [None, 5, "x", {"a": []}])
def test_a_list_of_candidates_that_is_none_does_not_stop_the_others(inputs: Inputs, bad: Any) -> None:
    [pair] = inputs.read({"8": bad, "7": [candidate()]})
    assert pair.image_id == "7"
    assert inputs.reasons == {"MALFORMED_IMAGE": 1}


@pytest.mark.parametrize("objects", [None, [], "abc", {"man": 1}, [None, 5, "man", {}, {"class_name": 3}]])
def test_objects_that_are_none_are_not_found(inputs: Inputs, objects: Any) -> None:
    assert inputs.read({"7": [candidate()]}, [image(objects=objects)]) == []
    assert inputs.reasons["SUBJECT_NOT_FOUND"] == 1


def test_an_object_nested_too_deeply_is_malformed(inputs: Inputs) -> None:
    deep: Any = "bottom"
    for _ in range(300):
        deep = [deep]
    objects = [{"class_name": "man", "bbox": [1, 1, 2, 2], "parts": deep}, OBJECTS[1]]
    assert inputs.read({"7": [candidate()]}, [image(objects=objects)]) == []
    assert inputs.reasons == {"MALFORMED_OBJECT": 1, "SUBJECT_NOT_FOUND": 1}


@pytest.mark.parametrize(
    "bbox",
    [None, [], [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, "3", 4], [1, 2, math.nan, 4], [1, 2, 1e999, 4], "1234"],
)
def test_a_box_that_is_not_four_numbers_drops_the_pair(inputs: Inputs, bbox: Any) -> None:
    objects = [OBJECTS[0], {"id": 2, "class_name": "dog", "bbox": bbox}]
    assert inputs.read({"7": [candidate()]}, [image(objects=objects)]) == []
    assert inputs.reasons == {"BAD_BOX": 1}


def test_stage_1_images_without_an_entry_and_entries_without_candidates_are_counted(inputs: Inputs) -> None:
    inputs.read({"6": [candidate(), candidate(subject="cat")], "8": []}, [image(7), image(8)])
    assert inputs.drops.of("pairs") == {"image not in the second input": 2}
    assert inputs.drops.of("images") == {"image without stage-1 candidates": 2}
    assert inputs.drops.candidates_in_dropped_pairs == 2


def test_every_number_of_the_account_is_json(inputs: Inputs) -> None:
    inputs.read({"7": [candidate(), candidate("no relation"), 5]})
    account = json.loads(json.dumps(inputs.drops.as_dict()))
    assert account["totals"] == {
        "candidates_read": 3,
        "candidates_kept": 1,
        "candidates_in_dropped_pairs": 0,
        "pairs_kept": 1,
    }


@pytest.mark.parametrize(
    ("stage1", "place"),
    [
        ("", "top level"),
        ("[]", "top level"),
        ('{"a": 1}', "per_image_top100_candidates"),
        ('{"per_image_top100_candidates": []}', "per_image_top100_candidates"),
        (
            '{"per_image_top100_candidates": {}, "per_image_top100_candidates": {}}',
            "per_image_top100_candidates",
        ),
        ('{"per_image_top100_candidates": {"7": [}', "line 1, byte 39"),
        ('{"per_image_top100_candidates": {}}\n x', "line 2, byte 37"),
        ('{"per_image_top100_candidates": {"7": []', "line 1, byte 40"),
        ('{"per_image_top100_candidates": {7: []}}', "line 1, byte 33"),
    ],
)
def test_a_stage_1_file_that_is_wrong_as_a_whole_is_refused(inputs: Inputs, stage1: str, place: str) -> None:
    with pytest.raises(InputError) as refused:
        inputs.read(stage1)
    assert refused.value.file.endswith("stage1.json")
    assert refused.value.key == place


@pytest.mark.parametrize("images", ["", "{}", '{"images": []}', "[{]", '[{"image_id": 1}', "[] []"])
def test_a_second_input_that_is_wrong_as_a_whole_is_refused(inputs: Inputs, images: str) -> None:
    with pytest.raises(InputError) as refused:
        inputs.read({"7": [candidate()]}, images)
    assert refused.value.file.endswith("images.json")


@pytest.mark.parametrize("present", ["stage1.json", "images.json"])
def test_a_file_that_cannot_be_read_is_refused_by_its_name(tmp_path: Path, present: str) -> None:
    (tmp_path / present).write_text("[]")
    absent = ({"stage1.json", "images.json"} - {present}).pop()
    with pytest.raises(InputError, match=rf"{absent}: the file: cannot be read \(No such file"):
        list(read_pairs(tmp_path / "stage1.json", tmp_path / "images.json", drops=Drops()))


def test_files_are_looked_for_and_boxes_outside_their_image_dropped(inputs: Inputs, tmp_path: Path) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    outside = [OBJECTS[0], {"id": 2, "class_name": "dog", "bbox": [100, 0, 120, 50]}]
    images = [image(1, "a.png"), image(2, "b.png"), image(3, "a.png", objects=outside)]
    stage1 = {str(n): [candidate()] for n in (1, 2, 3)}
    [pair] = inputs.read(stage1, images, check_files=True)
    assert pair.image_id == "1"
    assert inputs.reasons == {"FILE_MISSING": 1, "BOX_OUTSIDE": 1}


def test_a_image_that_cannot_be_read_stays_for_the_worker_to_judge(inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"<html>")
    assert len(inputs.read({"7": [candidate()]}, check_files=True)) == 1


@pytest.mark.parametrize(
    ("path", "reason"),
    [(path, "PATH_LEAVES_ROOT") for path in ("../a.jpg", "/etc/passwd", "x/../../a.jpg", ".")]
    + [(path, "NO_PATH") for path in ("", None, 5, "a\0.jpg")],
)
def test_an_image_path_that_leaves_the_root_or_is_none_drops_the_pair(inputs: Inputs, path: Any, reason: str) -> None:
    assert inputs.read({"7": [candidate()]}, [image(path=path)]) == []
    assert inputs.reasons == {reason: 1}


def test_paths_are_relative_to_the_image_root(inputs: Inputs, tmp_path: Path) -> None:
    images = [
        image(1, str(tmp_path / "root" / "b" / "1.jpg")),
        image(2, "b//./2.jpg"),
        image(3, "../root/3.jpg"),
    ]
    stage1 = {str(n): [candidate()] for n in (1, 2, 3)}
    pairs = inputs.read(stage1, images, image_root=tmp_path / "root")
    assert [p.image_path for p in pairs] == ["b/1.jpg", "b/2.jpg", "3.jpg"]


def test_importing_the_readers_loads_nothing_heavy() -> None:
    code = "import sys, app.inputs.reader, app.prompts; print([m for m in sys.modules if m in sys.argv[1:]])"
    heavy = ["torch", "transformers", "numpy", "PIL", "sqlalchemy", "celery", "pydantic"]
    shown = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
