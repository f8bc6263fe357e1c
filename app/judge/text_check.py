"""One description checked: all its flags."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from app.judge import claims_chinese, claims_english, wording
from app.judge.claims import Box, Claim, is_contradicted
from app.judge.flags import Flag
from app.judge.mentions import MARK, Names, names_of_pair
from app.judge.wording import Language, is_in_another, language_of

_TAG = re.compile(r"<[^<>\n]{0,40}>|\*+|#+|`")
_QUOTED = re.compile(r'"([^"\n]{0,80})"|“([^”\n]{0,80})”|「([^」\n]{0,80})」|‘([^’\n]{0,80})’')
_SENTENCE = re.compile(r"(?<!\d)\.|\.(?!\d)|[!?;\n。！？；]")
_MOST = 20_000
"""Characters of a text that are looked at: what a model writes beyond that is the same again."""
_LONGEST_SENTENCE = 600
"""Characters of a sentence that are searched for places: a longer one is no sentence, and would take long."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a description is about: two class names, their boxes in pixels, the size of the image where it is known."""

    subject: str
    object: str
    boxes: tuple[Box, Box]
    size: tuple[float, float] | None = None


def flags_of(text: str, finish_reason: str, scene: Scene, language: Language | None) -> Flag:
    """What is wrong, or may be wrong, with a description; ``language`` is the wanted one, None any."""
    flags = Flag.CUT_OFF if finish_reason == "length" else Flag(0)
    text = text[:_MOST]
    if not any(character.isalnum() for character in text):
        return flags | Flag.EMPTY
    names = names_of_pair(scene.subject, scene.object)
    plain = _TAG.sub("", text).replace("\u2019", "'").replace(MARK, "")
    number = names.count(plain, chinese=language_of(plain) == "zh")
    raised = {
        Flag.REPEATS: wording.repeats_itself(plain),
        Flag.WRONG_LANGUAGE: language is not None and is_in_another(names.remove(plain), language),
        Flag.NAMES_ONE: number == 1,
        Flag.NAMES_NEITHER: number == 0,
        Flag.SPEAKS_OF_PROMPT: wording.speaks_of_prompt(text),
        Flag.REFUSES: wording.refuses(plain),
        Flag.CONTRADICTS_BOXES: any(is_contradicted(each, scene.boxes, scene.size) for each in claims(plain, names)),
    }
    for flag, is_raised in raised.items():
        flags |= flag if is_raised else Flag(0)
    return flags


def claims(text: str, names: Names) -> Iterator[Claim]:
    """What a text says of the places of the two objects; what it quotes is not what it says."""
    marked = _QUOTED.sub(_only_names, names.mark(text))
    for sentence in _SENTENCE.split(marked):
        found = claims_chinese if language_of(sentence) == "zh" else claims_english
        yield from found.claims_in(" ".join(sentence.split())[:_LONGEST_SENTENCE])


def _only_names(quoted: re.Match[str]) -> str:
    content = next(group for group in quoted.groups() if group is not None)
    return f" {content} " if re.fullmatch(rf"\W*(?:(?:the|a|an)\s+)?{MARK}[01]\W*", content) else " "
