"""The flags that a description may get: their names, what each means, and how they are kept as one number."""

from __future__ import annotations

from enum import IntFlag

RULES = 1
"""The version of the rules; another one has all texts checked again."""


class Flag(IntFlag):
    """What is wrong, or may be wrong, with a text. Bits are kept in databases: add at the end, never renumber."""

    CUT_OFF = 1
    EMPTY = 2
    REPEATS = 4
    WRONG_LANGUAGE = 8
    NAMES_ONE = 16
    NAMES_NEITHER = 32
    SPEAKS_OF_PROMPT = 64
    REFUSES = 128
    CONTRADICTS_BOXES = 256


MEANINGS = {
    Flag.CUT_OFF: "ended by the limit of new tokens",
    Flag.EMPTY: "holds no letter and no digit",
    Flag.REPEATS: "says a sentence twice, or goes in circles",
    Flag.WRONG_LANGUAGE: "is written in another language than the prompt asks for",
    Flag.NAMES_ONE: "names one of the two objects",
    Flag.NAMES_NEITHER: "names neither object",
    Flag.SPEAKS_OF_PROMPT: "speaks of the prompt, or to whoever wrote it",
    Flag.REFUSES: "says that it cannot or will not tell",
    Flag.CONTRADICTS_BOXES: "says left, right, above, below, inside or overlapping where the boxes say otherwise",
}
"""Each flag in a few words."""

NAMES = {flag.name.lower(): flag for flag in MEANINGS if flag.name}
"""Each flag by its name in JSON."""


def names_of(flags: int) -> list[str]:
    """The names of the flags in a number."""
    return [name for name, flag in NAMES.items() if flags & flag]
