"""Descriptions whose faults are known, drawn from phrases by a seed: what the checks are measured by."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from app.judge.claims import Box
from app.judge.flags import Flag
from app.judge.text_check import Scene
from app.judge.wording import LANGUAGES, Language
from benchmarks.planted_phrases import (
    FOREIGN,
    NEUTRAL,
    NONE_NAMED,
    ONE_NAMED,
    PLACES,
    PROMPTED,
    REFUSED,
)

_NOTHING = Flag(0)
_SIZE = (1000.0, 800.0)
# class -> how English and Chinese texts call it: itself, a synonym, a plural
_CALLED: dict[str, dict[Language, tuple[str, ...]]] = {
    "man": {"en": ("man", "guy", "gentleman"), "zh": ("男人", "男子", "man")},
    "horse": {"en": ("horse", "horses", "pony"), "zh": ("马", "马匹", "horse")},
    "bicycle": {"en": ("bicycle", "bike"), "zh": ("自行车", "单车", "bicycle")},
    "dog": {"en": ("dog", "dogs", "puppy"), "zh": ("狗", "小狗", "dog")},
    "dining table": {"en": ("dining table", "table"), "zh": ("餐桌", "桌子", "dining table")},
    "cup": {"en": ("cup", "cups", "mug"), "zh": ("杯子", "茶杯", "cup")},
    "knife": {"en": ("knife", "knives"), "zh": ("刀", "餐刀", "knife")},
    "potted plant": {"en": ("potted plant", "plant"), "zh": ("盆栽", "植物", "potted plant")},
    "couch": {"en": ("couch", "sofa"), "zh": ("沙发", "couch")},
    "laptop": {"en": ("laptop", "computer"), "zh": ("笔记本电脑", "电脑", "laptop")},
    "umbrella": {"en": ("umbrella", "umbrellas"), "zh": ("雨伞", "伞", "umbrella")},
    "cat": {"en": ("cat", "kitten"), "zh": ("猫", "小猫", "cat")},
}
_UNSAID = Flag.CONTRADICTS_BOXES | Flag.NAMES_ONE | Flag.NAMES_NEITHER | Flag.REPEATS | Flag.SPEAKS_OF_PROMPT
_KINDS = (
    "true place", "false place", "true place", "false place", "neutral", "one named", "none named", "repeated",
    "in circles", "prompted", "refused", "other language", "foreign", "empty", "cut off",
)  # fmt: skip


@dataclass(frozen=True)
class Planted:
    """A text, what is wrong with it, and what nobody can say of it."""

    text: str
    finish_reason: str
    scene: Scene
    language: Language  # that is wanted
    faults: Flag
    unsaid: Flag = _NOTHING
    place: str = ""  # the relation that is stated


def planted(number: int, seed: int) -> Iterator[Planted]:
    """As many texts in each language, drawn by the seed."""
    rng = random.Random(seed)
    for language in LANGUAGES:
        for at in range(number):
            yield _planted(rng, language, _KINDS[at % len(_KINDS)])


def _planted(rng: random.Random, language: Language, kind: str) -> Planted:
    subject, object_ = rng.sample(sorted(_CALLED), 2)
    called = {"s": rng.choice(_CALLED[subject][language]), "o": rng.choice(_CALLED[object_][language])}
    place = rng.choice(sorted(PLACES[language]))
    boxes = _boxes(rng, place)
    if kind == "false place":
        boxes = _boxes(rng, _OPPOSITE[place])
    scene = Scene(subject, object_, boxes, _SIZE)
    sentences = [rng.choice(PLACES[language][place])]
    faults, unsaid, finish = Flag(0), Flag(0), "stop"
    neutral = rng.sample(NEUTRAL[language], rng.randint(0, 2))
    match kind:
        case "false place":
            faults = Flag.CONTRADICTS_BOXES
        case "neutral":
            sentences, place = [NEUTRAL[language][-1]], ""
            neutral = neutral[:1] if NEUTRAL[language][-1] not in neutral else []
        case "one named" | "none named":
            phrases = ONE_NAMED if kind == "one named" else NONE_NAMED
            sentences, neutral, place = [rng.choice(phrases[language])], [rng.choice(NEUTRAL[language][:2])], ""
            called["n"] = rng.choice([called["s"], called["o"]])
            faults = Flag.NAMES_ONE if kind == "one named" else Flag.NAMES_NEITHER
        case "repeated":
            sentences, neutral = [*sentences, NEUTRAL[language][0], *sentences, NEUTRAL[language][0]], []
            faults = Flag.REPEATS
        case "in circles":
            clause = {"en": " and the {s} is near the {o}", "zh": "，{s}靠近{o}"}[language]
            sentences, faults = [*sentences, sentences[0][:-1] + clause * rng.randint(4, 8)], Flag.REPEATS
            sentences = sentences[1:]
        case "prompted" | "refused":
            phrases = PROMPTED if kind == "prompted" else REFUSED
            sentences, place = [rng.choice(phrases[language]), *(sentences if kind == "prompted" else [])], place
            faults = Flag.SPEAKS_OF_PROMPT if kind == "prompted" else Flag.REFUSES
            neutral = neutral if kind == "prompted" else []
        case "other language":
            other: Language = "en" if language == "zh" else "zh"
            called = {"s": rng.choice(_CALLED[subject][other]), "o": rng.choice(_CALLED[object_][other])}
            sentences, neutral = [rng.choice(PLACES[other][place])], [rng.choice(NEUTRAL[other])]
            faults = Flag.WRONG_LANGUAGE
        case "foreign":
            called = {"s": subject, "o": object_}
            sentences, neutral, place = [rng.choice(FOREIGN)], [], ""
            faults, unsaid = Flag.WRONG_LANGUAGE, _UNSAID
        case "empty":
            text = rng.choice(["", " ", "\n\n", "...", "。", "<|im_end|>".replace("im_end", ""), "-"])
            return Planted(text, "stop", scene, language, Flag.EMPTY, _UNSAID)
        case "cut off":
            faults, finish = Flag.CUT_OFF, "length"
    gap = "" if language == "zh" else " "
    text = gap.join([*sentences, *neutral]).format(**called)
    return Planted(text, finish, scene, language, faults, unsaid, place)


_OPPOSITE = {
    "left": "right", "right": "left", "above": "below", "below": "above", "inside": "apart", "overlapping": "apart",
    "apart": "overlapping", "upper left": "lower right", "lower right": "upper left",
}  # fmt: skip


def _boxes(rng: random.Random, place: str) -> tuple[Box, Box]:
    """Two boxes of which the relation holds beyond doubt."""
    while True:
        subject, object_ = _box(rng), _box(rng)
        if place == "inside":
            left, top, right, bottom = object_
            width, height = right - left, bottom - top
            subject = (left + 0.2 * width, top + 0.2 * height, left + 0.7 * width, top + 0.6 * height)
        if _holds(place, subject, object_):
            return subject, object_


def _box(rng: random.Random) -> Box:
    width, height = rng.uniform(60, 400), rng.uniform(60, 350)
    left, top = rng.uniform(0, _SIZE[0] - width), rng.uniform(0, _SIZE[1] - height)
    return left, top, left + width, top + height


def _holds(place: str, one: Box, other: Box) -> bool:
    dx, dy = ((one[a] + one[a + 2] - other[a] - other[a + 2]) / 2 / _SIZE[a] for a in (0, 1))
    shared = [min(one[a + 2], other[a + 2]) - max(one[a], other[a]) for a in (0, 1)]
    least = 0.15
    return {
        "left": dx < -least, "right": dx > least, "above": dy < -least, "below": dy > least,
        "upper left": dx < -least and dy < -least, "lower right": dx > least and dy > least,
        "inside": True, "overlapping": min(shared) > 60, "apart": min(shared) < -10,
    }[place]  # fmt: skip
