"""Inputs that change after they were enqueued: what is exported was said of them, and a change costs what is new."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app.errors import RunError
from producer.run_request import Inputs
from tests.runs.conftest import Fresh
from tests.support.desk import Desk, change, mismatched, texts
from tests.support.runs import write_inputs

Change = Callable[[Inputs], None]


def candidates(inputs: Inputs, how: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change the candidates of the first image."""
    change(inputs.stage1_files[0], lambda document: how(document["per_image_top100_candidates"]["1"]))


def another_predicate(inputs: Inputs) -> None:
    candidates(inputs, lambda found: found[0].update(predicted_predicate="below"))


def one_predicate_fewer(inputs: Inputs) -> None:
    candidates(inputs, lambda found: found.__delitem__(0))


def one_predicate_more(inputs: Inputs) -> None:
    candidates(inputs, lambda found: found.append({**found[0], "predicted_predicate": "below", "similarity": 0.95}))


def other_order(inputs: Inputs) -> None:
    candidates(inputs, lambda found: found[0].update(similarity=0.1))


def a_box(inputs: Inputs) -> None:
    change(inputs.images, lambda images: images[0]["objects"][1].update(bbox=[30, 30, 40, 40]))


def a_name(inputs: Inputs) -> None:
    change(inputs.images, lambda images: images[0]["objects"][1].update(class_name="sign"))
    candidates(inputs, lambda found: [each.update(object="sign") for each in found[:2]].clear())


def a_pair_less(inputs: Inputs) -> None:
    candidates(inputs, lambda found: found.__delitem__(slice(2)))


def the_picture(inputs: Inputs) -> None:
    Image.new("RGB", (64, 48), (1, 2, 3)).save(inputs.image_root / "0.png", compress_level=0)


def another_file(inputs: Inputs) -> None:
    Image.new("RGB", (64, 48), (3, 2, 1)).save(inputs.image_root / "moved.png", compress_level=0)
    change(inputs.images, lambda images: images[0].update(image_path="moved.png"))


CHANGES: dict[Change, int] = {  # what changes: how many texts are new, of the 12 there are
    another_predicate: 1, one_predicate_fewer: 0, one_predicate_more: 1, other_order: 0, a_box: 2, a_name: 2,
    a_pair_less: 0, the_picture: 6, another_file: 6,
}  # fmt: skip


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    """Two images of three pairs, two predicates each."""
    return write_inputs(tmp_path / "in", images=2, pairs=3, predicates=2)


@pytest.mark.parametrize("changed", CHANGES, ids=lambda each: each.__name__)
def test_what_changed_after_it_was_described_costs_what_is_new(
    desk: Desk, inputs: Inputs, fresh: Fresh, changed: Change
) -> None:
    desk.enqueue(inputs)
    assert desk.describe() == 12
    changed(inputs)
    desk.enqueue(inputs, update=True)
    meanwhile = desk.published()["results"]
    assert mismatched(meanwhile) == []
    assert texts(meanwhile) <= texts(fresh(inputs))
    assert desk.describe() == CHANGES[changed]
    assert desk.published()["results"] == fresh(inputs)
    assert desk.describe() == 0


@pytest.mark.parametrize("changed", CHANGES, ids=lambda each: each.__name__)
def test_what_changes_in_a_workers_hands_is_never_shown_beside_what_it_was_not_said_of(
    desk: Desk, inputs: Inputs, fresh: Fresh, changed: Change
) -> None:
    desk.enqueue(inputs)
    with desk.all_in_flight():
        changed(inputs)
        desk.enqueue(inputs, update=True)
    meanwhile = desk.published()["results"]
    assert mismatched(meanwhile) == []
    desk.standing()
    desk.describe()
    assert desk.published()["results"] == fresh(inputs)
    assert desk.generated <= 12 + CHANGES[changed]


@pytest.mark.parametrize("changed", CHANGES, ids=lambda each: each.__name__)
def test_what_changes_before_it_is_begun_is_described_as_it_is_then(
    desk: Desk, inputs: Inputs, fresh: Fresh, changed: Change
) -> None:
    desk.enqueue(inputs)
    changed(inputs)
    desk.enqueue(inputs, update=True)
    desk.describe()
    assert desk.published()["results"] == fresh(inputs)


@pytest.mark.parametrize("changed", CHANGES, ids=lambda each: each.__name__)
def test_a_change_that_is_taken_back_costs_nothing(desk: Desk, inputs: Inputs, fresh: Fresh, changed: Change) -> None:
    files = {path: path.read_bytes() for path in inputs.image_root.iterdir()}
    stamps = {path: path.stat() for path in files}
    desk.enqueue(inputs)
    desk.describe()
    before = desk.published()["results"]
    changed(inputs)
    desk.enqueue(inputs, update=True)
    for path, content in files.items():
        path.write_bytes(content)
        os.utime(path, ns=(stamps[path].st_atime_ns, stamps[path].st_mtime_ns))
    desk.enqueue(inputs, update=True)
    assert desk.describe() == 0
    assert desk.standing() == (6, 6, 0, 0)
    assert desk.published()["results"] == before
    summary = desk.published()["summary"]
    assert (summary["texts"], summary["stale_pairs"]) == (12, 0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (another_predicate, r"predicates of 1 pairs:\n  image 1, .*'thing 1'\): predicates: on, next to then, below"),
        (one_predicate_fewer, r"predicates of 1 pairs"),
        (a_box, r"boxes of 1 pairs:\n  image 1, .* box of 'thing 1': \[1, 1, 21, 16\] then, \[30, 30, 40, 40\] now"),
        (a_name, r"no longer in the inputs of 1 pairs"),
        (a_pair_less, r"no longer in the inputs of 1 pairs"),
        (another_file, r"image path of 3 pairs:\n .*image path: 0.png then, moved.png now"),
    ],
)  # fmt: skip
def test_changed_inputs_are_refused_with_the_difference_and_nothing_changes(
    desk: Desk, inputs: Inputs, changed: Change, said: str
) -> None:
    desk.enqueue(inputs)
    desk.describe()
    before = desk.published()
    changed(inputs)
    with pytest.raises(RunError, match=said) as refused:
        desk.enqueue(inputs)
    assert "--update" in str(refused.value)
    assert desk.published() == before
    assert desk.describe() == 0


def test_what_is_in_flight_of_a_run_that_was_made_again_with_other_settings_is_not_this_ones(
    desk: Desk, inputs: Inputs, fresh: Fresh
) -> None:
    desk.enqueue(inputs, temperature=0.5)
    with desk.all_in_flight():
        desk.enqueue(inputs, temperature=0.5, seed=7)  # SQLite gives its pairs the ids of those that are gone
    assert desk.standing().done == 0
    desk.describe()
    assert desk.published()["results"] == fresh(inputs, temperature=0.5, seed=7)


def test_a_replaced_picture_is_noticed_by_a_plain_repeat_and_only_its_pairs_are_described_again(
    desk: Desk, inputs: Inputs, fresh: Fresh
) -> None:
    desk.enqueue(inputs)
    desk.describe()
    the_picture(inputs)
    prepared = desk.enqueue(inputs)
    assert (prepared.stored.to_check, prepared.texts.to_check, prepared.open) == (3, 6, 3)
    assert desk.describe() == 6
    assert desk.published()["results"] == fresh(inputs)


def test_a_picture_that_was_only_touched_costs_nothing(desk: Desk, inputs: Inputs) -> None:
    desk.enqueue(inputs)
    desk.describe()
    before = desk.published()["results"]
    os.utime(inputs.image_root / "0.png", (1, 1))
    assert desk.enqueue(inputs).stored.to_check == 3
    assert desk.describe() == 0
    assert desk.published()["results"] == before
    assert desk.enqueue(inputs).open == 0


def test_fewer_predicates_cost_nothing_and_more_again_neither(desk: Desk, tmp_path: Path, fresh: Fresh) -> None:
    inputs = write_inputs(tmp_path / "in", images=2, pairs=3, predicates=4)
    desk.enqueue(inputs, top_k=4)
    assert desk.describe() == 24
    fewer = desk.enqueue(inputs, top_k=2, update=True)
    assert (fewer.texts.new, fewer.texts.reused, fewer.texts.copied) == (0, 12, 6)
    assert desk.describe() == 0
    assert desk.published()["results"] == fresh(inputs, top_k=2)
    assert desk.published()["summary"]["texts"] == desk.published()["summary"]["texts_reused"] == 12
    more = desk.enqueue(inputs, top_k=3, update=True)
    assert (more.texts.new, more.texts.reused) == (0, 18)
    assert desk.describe() == 0
    assert desk.published()["results"] == fresh(inputs, top_k=3)


def test_another_run_of_the_same_costs_nothing_unless_it_wants_its_own(
    desk: Desk, inputs: Inputs, fresh: Fresh
) -> None:
    desk.enqueue(inputs, top_k=1)
    desk.describe()
    second = desk.enqueue(inputs, "second")
    assert (second.texts.new, second.texts.reused) == (6, 6)
    assert desk.describe("second") == 6
    assert desk.published("second")["results"] == fresh(inputs)
    desk.enqueue(inputs, "third", reuse=False)
    assert desk.describe("third") == 12
    assert desk.published("third")["results"] == fresh(inputs)


@pytest.mark.parametrize("other", [{"seed": 1}, {"temperature": 1.5}])
def test_a_text_of_another_random_stream_is_not_reused(desk: Desk, inputs: Inputs, other: dict[str, Any]) -> None:
    desk.enqueue(inputs, temperature=0.5)
    desk.describe()
    desk.enqueue(inputs, "other", **({"temperature": 0.5} | other))
    assert desk.describe("other") == 12


def test_a_text_that_was_cut_serves_at_its_limit_alone(desk: Desk, inputs: Inputs) -> None:
    cut = desk.engine.answer
    desk.engine.answer = lambda request: type(cut(request))("cut", "length", request.sampling.max_new_tokens, 7)
    desk.enqueue(inputs, max_new_tokens=4)
    desk.describe()
    desk.enqueue(inputs, "same", max_new_tokens=4)
    desk.enqueue(inputs, "longer", max_new_tokens=5)
    assert (desk.describe("same"), desk.describe("longer")) == (0, 12)
    assert desk.published()["summary"]["texts_cut_off"] == 12


def test_two_folders_with_the_same_relative_names_are_refused_and_the_first_is_kept(
    desk: Desk, inputs: Inputs, tmp_path: Path, fresh: Fresh
) -> None:
    other = write_inputs(tmp_path / "other", images=2, pairs=3, predicates=2)
    for number in range(2):
        Image.new("RGB", (64, 48), (9, 9, number)).save(other.image_root / f"{number}.png", compress_level=0)
    desk.enqueue(inputs)
    desk.describe(most=2)
    with pytest.raises(RunError, match=r"image .* is .*/in/\d.png in one source .*/other/\d.png in this.*--run"):
        desk.enqueue(other)
    with pytest.raises(RunError, match="Two files cannot be one image"):
        desk.enqueue(other, update=True)
    desk.describe()
    assert desk.published()["results"] == fresh(inputs)


def test_two_folders_with_other_images_are_two_sources_each_seen_in_its_own(
    desk: Desk, inputs: Inputs, tmp_path: Path, fresh: Fresh
) -> None:
    other = write_inputs(tmp_path / "other", images=1, pairs=3, predicates=2)
    change(other.images, lambda images: images[0].update(image_id=77))
    change(other.stage1_files[0], lambda document: document["per_image_top100_candidates"].update(
        {"77": document["per_image_top100_candidates"].pop("1")}))  # fmt: skip
    Image.new("RGB", (64, 48), (9, 9, 9)).save(other.image_root / "0.png", compress_level=0)
    desk.enqueue(inputs)
    desk.enqueue(other)
    desk.describe()
    assert desk.published()["results"] == fresh(inputs) + fresh(other)


def test_subsets_of_one_second_input_are_exported_in_its_order(desk: Desk, tmp_path: Path, fresh: Fresh) -> None:
    inputs = write_inputs(tmp_path / "in", images=4, pairs=2, predicates=1)
    stage1 = json.loads(inputs.stage1_files[0].read_text())["per_image_top100_candidates"]
    for name, images in (("odd", ("1", "3")), ("even", ("image-2", "image-4"))):
        part = tmp_path / "in" / f"{name}.json"
        part.write_text(json.dumps({"per_image_top100_candidates": {each: stage1[each] for each in images}}))
        desk.enqueue(Inputs(part, inputs.images, inputs.image_root))
    desk.describe()
    assert desk.published()["results"] == fresh(inputs)


def test_after_a_subset_first_the_export_is_in_the_order_of_the_whole(
    desk: Desk, inputs: Inputs, tmp_path: Path, fresh: Fresh
) -> None:
    few = tmp_path / "in" / "few.json"
    few.write_bytes(inputs.stage1_files[0].read_bytes())
    change(few, lambda document: document["per_image_top100_candidates"].pop("1"))
    desk.enqueue(Inputs(few, inputs.images, inputs.image_root))
    desk.describe(most=2)
    desk.enqueue(inputs)
    desk.describe()
    assert desk.published()["results"] == fresh(inputs)
    desk.enqueue(Inputs(few, inputs.images, inputs.image_root))
    assert desk.published()["results"] == fresh(inputs)
