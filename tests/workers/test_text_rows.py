"""What a row says of its text: cut, repeating, without an answer."""

from __future__ import annotations

import random
import string
from typing import Any

import pytest

from app.text_keys import Wanted
from workers.engine.api import Completion, answer_of
from workers.text_rows import CHARACTERS, TIMES, as_row, repeats_itself

SENTENCE = "The red star is to the left of the ring. "


@pytest.mark.parametrize(
    "text",
    [
        SENTENCE * TIMES,
        "At first all is well. " + SENTENCE * TIMES,
        SENTENCE * 6 + SENTENCE[:17],  # cut in the middle of a piece
        "the " * 40,
        "很" * CHARACTERS,
        "\n" * 500,
        "x" + ("a long piece of some hundred characters, " * 9 + "and its end; ") * 5,
    ],
)
def test_an_end_that_is_one_piece_over_and_over_is_noticed(text: str) -> None:
    assert repeats_itself(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no",
        SENTENCE,
        SENTENCE * (TIMES - 1),
        SENTENCE * 8 + "But then it says something else at the end of all that.",
        "no, no, no, no",
        "------------------------------",
        "1. on\n2. above\n3. near\n4. under\n5. in front of\n6. behind\n7. left of\n8. right of\n",
        "The first is on the second. The second is on the third. The third is on the fourth. The fourth is on it.",
    ],
)
def test_other_texts_are_not(text: str) -> None:
    assert not repeats_itself(text)


def test_texts_of_chance_are_not() -> None:
    dice = random.Random(3)
    for _ in range(200):
        assert not repeats_itself("".join(dice.choices(string.ascii_lowercase + " ", k=300)))


def row(completion: Completion) -> dict[str, Any]:
    return as_row(completion, Wanted("on", (("?", False),), 7, 12, "the key"))


def test_an_ordinary_text_bears_no_mark() -> None:
    plain = row(Completion("A text.", "stop", 3, 7))
    assert plain.keys() == {"text", "finish_reason", "tokens", "prompt_tokens", "key", "predicate"}
    assert (plain["text"], plain["finish_reason"], plain["tokens"]) == ("A text.", "stop", 3)


def test_marks_are_those_of_what_was_written() -> None:
    assert row(Completion("the " * 40, "length", 40, 7))["repeats"]
    thought = row(Completion("", "length", 40, 7, reasoning="Wait, " * 40, closed=False))
    assert (thought["repeats"], thought["unclosed"], thought["reasoning"]) == (True, True, "Wait, " * 40)
    answered = row(Completion("An answer.", "stop", 40, 7, reasoning="Wait, " * 40))
    assert answered.keys() & {"repeats", "unclosed"} == set()


@pytest.mark.parametrize(
    ("written", "opened", "expected"),
    [
        ("A text.", False, ("A text.", None, True)),
        (" A text. ", False, (" A text. ", None, True)),
        ("<think>Hm.</think>\n\nA text.", False, ("A text.", "Hm.", True)),
        ("\n<think>\nHm.\n</think>\n\nA text.\n", False, ("A text.", "Hm.", True)),
        ("Hm.\n</think>\n\nA text.", True, ("A text.", "Hm.", True)),
        ("Hm.\n</think>\n\nA text.", False, ("A text.", "Hm.", True)),
        ("Hm. And then", True, ("", "Hm. And then", False)),
        ("<think>Hm. And then", False, ("", "Hm. And then", False)),
        ("", True, ("", "", False)),
        ("", False, ("", None, True)),
        ("</think>A text.", True, ("A text.", "", True)),
        ("Hm.</think>", True, ("", "Hm.", True)),
        ("It says <think> on the sign.", False, ("It says <think> on the sign.", None, True)),
    ],
)
def test_reasoning_and_answer_are_parted(written: str, opened: bool, expected: tuple[str, str | None, bool]) -> None:
    assert answer_of(written, opened=opened) == expected
