"""Keys of texts: what they tell apart, and that those of older versions stay what they were."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from app.database.records import RunSettings
from app.text_keys import Scene
from tests.support.runs import request_for

SCENE = Scene("m" * 64, "i" * 64, "stored", (64, 48), (None, None), "t" * 32)
PROMPT = (("a", False), ("b", True))


def key(**settings: Any) -> str:
    plain: RunSettings = request_for().settings
    return SCENE.text_key(PROMPT, replace(plain, **settings), 7, 0)


@pytest.mark.parametrize(
    ("temperature", "known"),
    [(0.0, "28963c9dc041ed58ea80b3be1ff1583a"), (0.1, "0faf2ae460f34599bd77e60756fa5406")],
)
def test_keys_without_new_ways_of_sampling_are_those_of_the_version_before(temperature: float, known: str) -> None:
    """Printed by the code before they came: a stored text must be found again."""
    assert key(temperature=temperature) == known


def test_each_way_of_sampling_has_keys_of_its_own() -> None:
    drawn: list[dict[str, Any]] = [{}, {"top_p": 0.5}, {"top_p": 0.6}, {"top_k_sampling": 5}]
    shapes = [*drawn, {"repetition_penalty": 5}, {"presence_penalty": 0.5}, {"presence_penalty": -0.5}]
    assert len({key(temperature=0.4, **shape) for shape in shapes}) == len(shapes)


def test_what_changes_no_greedy_text_is_in_no_greedy_key() -> None:
    plain = key(temperature=0.0)
    assert key(temperature=0.0, top_p=0.2) == plain
    assert key(temperature=0.0, top_k_sampling=1, seed=9) == plain
    assert key(temperature=0.0, repetition_penalty=1.1) != plain
