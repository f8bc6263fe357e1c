"""What the rules say of single descriptions. How often they are right, ``benchmarks.checks`` measures."""

from __future__ import annotations

import pytest

from app.judge.flags import MEANINGS, NAMES, Flag, names_of
from app.judge.text_check import Scene, flags_of
from app.judge.wording import Language

# The man is left of and above the horse, apart from it; the dog lies inside the bed's box.
BESIDE = Scene("man", "horse", ((0, 0, 100, 100), (300, 300, 500, 500)), (600, 600))
INSIDE = Scene("dog", "bed", ((120, 120, 180, 160), (0, 0, 400, 300)), (600, 600))


def flags(text: str, scene: Scene = BESIDE, language: Language | None = None, finish: str = "stop") -> set[str]:
    return set(names_of(flags_of(text, finish, scene, language)))


@pytest.mark.parametrize(
    "text",
    [
        "The man is to the left of the horse.",
        "The horse is below the man, who wears a hat.",
        "The men are not to the right of the horses.",
        "To the right of the man there is a brown horse.",
        "The man is above and to the left of the horse; they do not overlap.",
        "The man is below the tree and the horse is above it.",  # of the tree, nobody knows
        "The man holding a frisbee to the right of the horse smiles.",  # the frisbee, perhaps
        "The man may be to the right of the horse.",
        'The man stands by the horse. "right of" does not fit.',
        "The man is to the left of the horse, not to the right of it.",
        "The man is near the horse, on the left of the image.",
        "男人在马的左上方。",
        "马不在男人的左边。",
        "马的左边是一个男人，两者没有重叠。",
        "男人手里的杯子在马的右边。",
        "男人可能在马的右边。",
    ],
)
def test_what_is_true_or_cannot_be_told_contradicts_nothing(text: str) -> None:
    assert flags(text) == set()


@pytest.mark.parametrize(
    "text",
    [
        "The man is to the right of the horse.",
        "The horse is to the left of the man.",
        "The guy in a red shirt is standing below the horse.",
        "The man, wearing a hat, is to the lower left of the horse.",
        "The man is inside the horse.",
        "The man and the horse overlap.",
        "The man stands by the horse, and they overlap.",
        "Above the man there is the horse.",
        "The man is not above the horse.",
        "The man is on the right and the horse is on the left.",
        "The man is on the right side of the image, and the horse is near.",
        "男人位于马的右侧。",
        "马在男人的左上方。",
        "马的下面有一个男人。",
        "男人不在马的左边。",
        "男人和马部分重叠。",
        "man在horse的右边。",
        "男人比马更靠右。",
        "在画面中，男人在马的里面。",
    ],
)
def test_what_the_boxes_deny_is_flagged(text: str) -> None:
    assert flags(text) == {"contradicts_boxes"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The dog lies inside the bed.", set()),
        ("The bed contains the dog.", set()),
        ("The dog does not overlap the bed.", {"contradicts_boxes"}),
        ("The bed is inside the dog.", {"contradicts_boxes"}),
        ("狗在床里面。", set()),
        ("狗和床没有重叠。", {"contradicts_boxes"}),
    ],
)
def test_boxes_inside_each_other(text: str, expected: set[str]) -> None:
    assert flags(text, INSIDE) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A guy with two horses.", set()),
        ("男子牵着一匹马。", set()),
        ("The person leads a pony.", set()),
        ("The man smiles.", {"names_one"}),
        ("一匹马在吃草。", {"names_one"}),
        ("A fine day.", {"names_neither"}),
        ("天气很好。", {"names_neither"}),
        ("The manual of a horseshoe.", {"names_neither"}),
    ],
)
def test_who_is_named(text: str, expected: set[str]) -> None:
    assert flags(text) == expected


def test_a_class_without_a_known_chinese_name_is_not_held_against_a_chinese_text() -> None:
    scene = Scene("zyzzyva", "horse", BESIDE.boxes)
    assert flags("象虫在马的旁边。", scene) == set()
    assert flags("A weevil by the horse.", scene) == {"names_one"}


def test_a_word_that_may_mean_either_names_the_other_one() -> None:
    scene = Scene("man", "woman", BESIDE.boxes)
    assert flags("A person stands by the woman.", scene) == set()
    assert flags("A person stands there.", scene) == {"names_one"}
    assert flags("Two zebras.", Scene("zebra", "zebra", BESIDE.boxes)) == set()


@pytest.mark.parametrize(
    ("text", "language", "wrong"),
    [
        ("The man is near the horse.", "zh", True),
        ("The man is near the horse.", "en", False),
        ("男人靠近马。", "en", True),
        ("man靠近horse，牵着它。", "zh", False),
        ("L'homme est à côté du cheval, et il est dans le pré avec le man et le horse.", "en", True),
        ("man, horse", "zh", False),
        ("男人靠近马。", None, False),
    ],
)
def test_language(text: str, language: Language | None, wrong: bool) -> None:
    assert ("wrong_language" in flags(text, language=language)) == wrong


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The man is near the horse and the dog. It is day. The man is near the horse and the dog.", "repeats"),
        ("The man and the horse" + " and the horse" * 5, "repeats"),
        ("男人牵着马" + "，男人牵着马" * 4, "repeats"),
        ("As requested, the man and the horse.", "speaks_of_prompt"),
        ("根据你提供的边界框，男人靠近马。", "speaks_of_prompt"),
        ("I'm sorry, I cannot describe the man or the horse.", "refuses"),
        ("抱歉，我无法描述男人和马。", "refuses"),
        (" \n…", "empty"),
        ("", "empty"),
    ],
)
def test_wording(text: str, expected: str) -> None:
    assert flags(text) == {expected}


def test_the_limit_of_tokens_cuts_off() -> None:
    assert flags("The man and the horse", finish="length") == {"cut_off"}
    assert flags("", finish="length") == {"cut_off", "empty"}


@pytest.mark.parametrize(
    "piece", ["左", " is", "§1的", "the man is above the ", "不在", "男人在马的左边，", "the horse of "]
)
def test_the_longest_texts_are_judged(piece: str) -> None:
    assert flags_of(piece * 20_000, "stop", BESIDE, "en") & Flag.REPEATS


def test_each_flag_is_named_and_explained_once() -> None:
    assert list(NAMES.values()) == list(MEANINGS) == list(Flag)
    assert len({int(flag) for flag in Flag}) == len(Flag)
