"""Inputs that hold the same pairs, in one run: what one lets go, another still holds, as it says it itself."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from app.database.connection import reading
from app.database.schema import pair_sources
from app.errors import RunError
from producer.run_request import Inputs
from tests.runs.conftest import Fresh
from tests.support.desk import Desk, mismatched
from tests.support.runs import write_inputs

IMAGES = ("1", "image-2", "3", "image-4")
STEPS = 12


class Part:
    """Two input files over some of the images of others."""

    def __init__(self, whole: Inputs, name: str, images: set[str], *, image_root: Path | None = None) -> None:
        self._whole = whole
        folder = whole.image_root
        self.inputs = Inputs(folder / f"{name}-stage1.json", folder / f"{name}-images.json", image_root or folder)
        self.predicates: dict[str, str] = {}
        self.images = images
        self.write()

    def write(self) -> None:
        """Bring the files up to date."""
        stage1 = json.loads(self._whole.stage1_files[0].read_text())["per_image_top100_candidates"]
        chosen = {image: found for image, found in stage1.items() if image in self.images}
        for image, found in chosen.items():
            found[0]["predicted_predicate"] = self.predicates.get(image, found[0]["predicted_predicate"])
        self.inputs.stage1_files[0].write_text(json.dumps({"per_image_top100_candidates": chosen}))
        entries = json.loads(self._whole.images.read_text())
        for entry in entries:
            path = self._whole.image_root / entry["image_path"]
            entry["image_path"] = str(path.relative_to(self.inputs.image_root))
        mine = [entry for entry in entries if str(entry["image_id"]) in self.images]
        self.inputs.images.write_text(json.dumps(mine))

    def hold(self, *images: str) -> Inputs:
        """Hold these images and no others."""
        self.images = set(images)
        self.write()
        return self.inputs

    def say(self, image: str, predicate: str) -> Inputs:
        """Ask for another predicate of the image's first pair."""
        self.predicates[image] = predicate
        self.write()
        return self.inputs


@pytest.fixture
def whole(tmp_path: Path) -> Inputs:
    """Four images of two pairs, two predicates each."""
    return write_inputs(tmp_path / "in", images=4, pairs=2, predicates=2)


@pytest.fixture
def a(whole: Inputs) -> Part:
    return Part(whole, "a", {"1", "image-2"})


@pytest.fixture
def b(whole: Inputs) -> Part:
    return Part(whole, "b", {"image-2", "3", "image-4"})


def test_what_one_lets_go_another_still_holds(desk: Desk, a: Part, b: Part, fresh: Fresh) -> None:
    desk.enqueue(a.inputs)
    desk.enqueue(b.inputs)
    assert desk.describe() == 16
    before = desk.published()["results"]
    prepared = desk.enqueue(a.hold("1"))  # no --update: the run holds what it held
    assert (prepared.stored.removed, prepared.open) == (0, 0)
    assert desk.published()["results"] == fresh(b.inputs, a.inputs)
    assert sorted(map(str, desk.published()["results"])) == sorted(map(str, before))


def test_what_the_last_one_lets_go_is_gone(desk: Desk, a: Part, b: Part, fresh: Fresh) -> None:
    desk.enqueue(a.inputs)
    desk.enqueue(b.inputs)
    desk.describe()
    desk.enqueue(b.hold("3", "image-4"))
    a.hold("1")
    with pytest.raises(RunError, match=r"no longer in the inputs of 2 pairs"):
        desk.enqueue(a.inputs)
    assert desk.enqueue(a.inputs, update=True).stored.removed == 2
    assert desk.published()["results"] == fresh(b.inputs, a.inputs)
    assert desk.standing() == (6, 6, 0, 0)


@pytest.mark.parametrize("described", [True, False])
def test_what_the_other_says_of_a_pair_holds_when_the_one_lets_go(
    desk: Desk, a: Part, b: Part, fresh: Fresh, described: bool
) -> None:
    desk.enqueue(b.inputs)
    desk.enqueue(a.inputs)
    if described:
        desk.describe()
    with pytest.raises(RunError, match="predicates of 1 pairs"):
        desk.enqueue(a.say("image-2", "below"))
    desk.enqueue(a.inputs, update=True)
    desk.describe()
    assert desk.published()["results"] == fresh(b.inputs, a.inputs)
    a.hold("1")
    with pytest.raises(RunError, match=r"predicates: .*below.* then, .* now"):
        desk.enqueue(a.inputs)
    desk.enqueue(a.inputs, update=True)
    assert desk.describe() == (0 if described else 1)
    assert desk.published()["results"] == fresh(b.inputs, a.inputs)
    assert mismatched(desk.published()["results"]) == []


def test_each_source_has_its_own_root(desk: Desk, whole: Inputs, a: Part, fresh: Fresh) -> None:
    b = Part(whole, "b", {"image-2", "3"}, image_root=whole.image_root.parent)
    desk.enqueue(a.inputs)
    with pytest.raises(RunError, match=r"image path: 1.png then, in/1.png now"):
        desk.enqueue(b.inputs)
    desk.enqueue(b.inputs, update=True)
    desk.describe()
    assert (desk.standing().done, desk.standing().failed) == (6, 0)
    desk.enqueue(b.hold("3"), update=True)
    desk.describe()
    assert (desk.standing().done, desk.standing().failed) == (6, 0)
    assert desk.published()["results"] == fresh(a.inputs, b.inputs)


def test_a_run_without_common_pairs_notes_none(desk: Desk, a: Part, b: Part) -> None:
    desk.enqueue(a.inputs)
    desk.enqueue(b.hold("3"))
    desk.enqueue(a.inputs)
    with reading(desk.database) as connection:
        assert connection.execute(select(pair_sources)).all() == []


@pytest.mark.parametrize("seed", range(3))
def test_whatever_they_hold_and_say_the_run_is_what_a_new_one_would_be(
    desk: Desk, whole: Inputs, a: Part, b: Part, fresh: Fresh, seed: int
) -> None:
    numbers = random.Random(seed)
    parts = [a, b, Part(whole, "c", {"1", "3"})]
    told: list[Part] = []
    steps: list[Any] = []

    def enqueue(part: Part) -> None:
        """Who spoke last stands last."""
        desk.enqueue(part.inputs, update=True)
        told[:] = [*(each for each in told if each is not part), part]

    for part in parts:
        enqueue(part)
    for _ in range(STEPS):
        part = numbers.choice(parts)
        match numbers.choice(["hold", "hold", "say", "describe", "again"]):
            case "hold":
                part.hold(*numbers.sample(IMAGES, numbers.randrange(1, 4)))
                enqueue(part)
            case "say":
                part.say(numbers.choice(IMAGES), numbers.choice(["below", "near", "on"]))
                enqueue(part)
            case "describe":
                desk.describe(most=numbers.randrange(8))
            case "again":
                enqueue(part)
        steps.append((parts.index(part), sorted(part.images), dict(part.predicates)))
        desk.standing()
        assert mismatched(desk.published()["results"]) == [], steps
    desk.describe()
    expected = fresh(*(each.inputs for each in told))
    ours = desk.published()["results"]
    assert sorted(map(str, ours)) == sorted(map(str, expected)), steps
    assert ours == expected, steps
