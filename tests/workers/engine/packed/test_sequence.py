"""What prompts share."""

from __future__ import annotations

from workers.engine.packed.sequence import split_shared


def test_a_pair_shares_all_but_what_differs() -> None:
    beginning = list(range(100, 120))
    shared, start = split_shared(4, [[1, 1, 1, 1, *beginning, 5, 9], [1, 1, 1, 1, *beginning, 6]])
    assert (shared, start) == (beginning, 24)


def test_equal_prompts_keep_a_token_of_their_own() -> None:
    prompt = list(range(30))
    assert split_shared(4, [prompt, prompt]) == (prompt[4:29], 29)


def test_a_short_common_beginning_is_not_shared() -> None:
    assert split_shared(4, [[1, 1, 1, 1, 5, 6, 7], [1, 1, 1, 1, 5, 8, 9]]) == ([], 4)
