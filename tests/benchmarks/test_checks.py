"""The checks' benchmark: what geometry decides is decided rightly, in both languages, whatever the seed."""

from __future__ import annotations

import pytest

from benchmarks.checks import measured


@pytest.mark.parametrize("seed", [1, 2])
def test_planted_contradictions_are_found_and_nothing_else_is(seed: int) -> None:
    found = measured(900, seed)
    for rows in found["flags"].values():
        row = rows["contradicts_boxes"]
        assert row["planted"] >= 100
        assert row["precision"] >= 0.95
        assert row["recall"] >= 0.95


def test_every_flag_is_planted_and_the_same_seed_plants_the_same() -> None:
    found = measured(150, 5)
    assert all(row["planted"] for rows in found["flags"].values() for row in rows.values())
    assert set(found["flags"]) == {"zh", "en"}
    assert measured(150, 5) == found
