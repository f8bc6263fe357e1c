"""The same over real photographs, where they lie beside the checkout; ``test_reader_quirks.py`` needs nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import InputError
from app.inputs.drops import Drops
from app.inputs.reader import read_pairs
from app.pair import Pair
from tests.support.input_files import DATA, needs_data

pytestmark = needs_data
PHOTOS = DATA / "photos20"
QUIRKS = PHOTOS / "quirks"


def read(stage1: Path, images: Path, root: Path | None = None) -> tuple[list[Pair], dict[str, int]]:
    drops = Drops()
    pairs = list(read_pairs(stage1, images, image_root=root, drops=drops))
    counted = {
        reason.name: n for reason, n in drops.counts.items() if reason.name not in ("NO_RELATION", "BELOW_TOP_K")
    }
    return pairs, counted


def quirk(name: str, images: str = "") -> tuple[list[Pair], dict[str, int]]:
    """Most quirks' paths are ``../images/...``: within that folder if it is the image root itself."""
    root = None if name[:3] in ("q05", "q06") else PHOTOS / "images"
    images = images or name.replace("stage1", "input")
    return read(QUIRKS / f"{name}.json", QUIRKS / f"{images}.json", root)


@pytest.mark.parametrize(
    ("stage1", "images", "expected"),
    [
        ("photos20/recall_results_public", "photos20/test_images", 355),
        ("photos20/recall_results_ci", "photos20/ci_test_images", 120),
        ("photos20/recall_results_mini", "photos20/mini_test_images", 13),
        ("coco24/recall_results", "coco24/images", 182),
        ("coco24/recall_results_with_ids", "coco24/images", 408),
    ],
)
def test_good_inputs_give_all_their_pairs(stage1: str, images: str, expected: int) -> None:
    pairs, counted = read(DATA / f"{stage1}.json", DATA / f"{images}.json")
    assert len(pairs) == len({pair.key_hash for pair in pairs}) == expected
    assert set(counted) <= {"ONLY_NO_RELATION"}


def test_image_ids_of_other_types() -> None:
    pairs, counted = quirk("q01_image_id_types_stage1")
    assert [pair.image_id_json for pair in {p.image_id: p for p in pairs}.values()] == [436, "459", 471.0]
    assert counted == {"IMAGE_NOT_IN_INPUT": 5, "NO_CANDIDATES": 1}  # "30" is not "000000000030"


def test_duplicate_classes() -> None:
    pairs, counted = quirk("q02_duplicate_classes_stage1")
    assert (len(pairs), counted) == (47, {})
    assert any(pair.subject == pair.object for pair in pairs)


def test_missing_things() -> None:
    pairs, counted = quirk("q03_missing_stage1")
    assert {pair.image_id for pair in pairs} == {"436"}
    assert counted == {"IMAGE_NOT_IN_INPUT": 9, "FILE_MISSING": 6, "SUBJECT_NOT_FOUND": 6, "NO_CANDIDATES": 1}


def test_boxes() -> None:
    pairs, counted = quirk("q04_bbox_stage1")
    assert (len(pairs), counted) == (6, {"BOX_OUTSIDE": 3, "BAD_BOX": 2})


@pytest.mark.parametrize("stage1", ["q05_non_ascii_stage1", "q05b_non_ascii_escaped_stage1"])
def test_names_and_paths_outside_ascii(stage1: str) -> None:
    pairs, counted = quirk(stage1, "q05_non_ascii_input")
    assert (len(pairs), counted) == (5, {})
    assert pairs[0].image_path == "images/vase_花瓶 é.jpg"


def test_unreadable_images_are_left_to_the_worker() -> None:
    pairs, counted = quirk("q06_image_formats_stage1")
    assert (len({pair.image_id for pair in pairs}), len(pairs), counted) == (13, 41, {})


def test_only_no_relation() -> None:
    pairs, counted = quirk("q07_only_no_relation_stage1")
    assert (len(pairs), counted) == (2, {"ONLY_NO_RELATION": 5, "NO_CANDIDATES": 1})


def test_scores_and_shapes() -> None:
    pairs, counted = quirk("q08_scores_and_shapes_stage1")
    assert len(pairs) == 40
    assert counted == {
        "BAD_SIMILARITY": 2,
        "MALFORMED_CANDIDATE": 2,
        "ONLY_NO_RELATION": 1,
        "SUBJECT_NOT_FOUND": 1,
    }


@pytest.mark.parametrize(("stage1", "expected"), [("q09_full_record_keys_stage1", 23), ("q10_hostile_names_stage1", 7)])
def test_additional_keys_and_hostile_names_pass(stage1: str, expected: int) -> None:
    pairs, counted = quirk(stage1)
    assert (len(pairs), counted) == (expected, {})


def test_a_byte_order_mark_and_a_nan() -> None:
    assert len(quirk("q11_bom_stage1", "q01_image_id_types_input")[0]) == 3
    pairs, counted = quirk("q11_nan_stage1", "q01_image_id_types_input")
    assert len(pairs) == 2
    assert counted == {"BAD_SIMILARITY": 1, "NO_USABLE_CANDIDATE": 1, "NO_CANDIDATES": 3}


def test_two_different_entries_of_one_image() -> None:
    pairs, counted = quirk("q11_bom_stage1", "q11_duplicate_ids_input")
    assert (pairs, counted) == ([], {"IMAGE_AMBIGUOUS": 3})


@pytest.mark.parametrize(
    ("stage1", "images", "complaint"),
    [
        (
            "q11_truncated_stage1",
            "q01_image_id_types_input",
            r"q11_truncated_stage1\.json: line 994, byte 19995: .* ends too early",
        ),
        (
            "q11_no_key_stage1",
            "q01_image_id_types_input",
            "per_image_top100_candidates: the file has no such key",
        ),
        ("q11_bom_stage1", "q11_dict_input", r"q11_dict_input\.json: top level: expected a list"),
    ],
)
def test_files_that_are_wrong_as_a_whole(stage1: str, images: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        quirk(stage1, images)


def test_a_path_that_leaves_the_default_root_is_refused() -> None:
    name = "q02_duplicate_classes"
    pairs, counted = read(QUIRKS / f"{name}_stage1.json", QUIRKS / f"{name}_input.json")
    assert (pairs, counted) == ([], {"PATH_LEAVES_ROOT": 47})
