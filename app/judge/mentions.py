"""Where a text names a pair's two objects: by their class names, plurals, synonyms and Chinese names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from app.judge.vocabulary import IRREGULAR, WORDS

MARK = "\u00a7"
"""What stands in a marked text before 0 (the subject) or 1 (the object)."""

_SINGULAR = {plural: name for name, plural in IRREGULAR.items()}
_HAN = re.compile(r"[\u3400-\u9fff]")
_HEADLESS = ("hot dog", "teddy bear")  # a hot dog is no dog


@dataclass(frozen=True, slots=True)
class Names:
    """How two objects may be named, as one pattern; ``owners`` says whose a found word is: 0, 1 or both."""

    pattern: re.Pattern[str]
    owners: dict[str, tuple[int, ...]]
    untold: tuple[bool, bool]  # no Chinese name of the subject, of the object is known

    def count(self, text: str, *, chinese: bool) -> int:
        """How many of the two a text names. Two objects of one class are both named by one word.

        A word that may mean either ("person", for a man and a woman) names the one that is named by no word of its own.
        """
        found = {self.owners[match.group().replace("-", " ")] for match in self.pattern.finditer(text.lower())}
        named = {owner for owners in found if len(owners) == 1 for owner in owners}
        named |= {at for at in (0, 1) if chinese and self.untold[at]}
        return 2 if (0, 1) in found and (named or self._same()) else len(named) or int((0, 1) in found)

    def mark(self, text: str) -> str:
        """The text in small letters, with a mark in place of each word that names one of the two alone."""

        def marked(match: re.Match[str]) -> str:
            owners = self.owners[match.group().replace("-", " ")]
            return f" {MARK}{owners[0]} " if len(owners) == 1 else match.group()

        return self.pattern.sub(marked, text.lower())

    def remove(self, text: str) -> str:
        """The text in small letters without what names either."""
        return self.pattern.sub(" ", text.lower())

    def _same(self) -> bool:
        return all(len(owners) == 2 for owners in self.owners.values())


@lru_cache(maxsize=4096)  # an input repeats some thousands of pairs of classes
def names_of_pair(subject: str, object_: str) -> Names:
    """How these two class names may stand in a text."""
    owners: dict[str, tuple[int, ...]] = {}
    for at, name in enumerate((subject, object_)):
        for word in _words(name):
            owners[word] = tuple(sorted({*owners.get(word, ()), at}))
    # A class's own name is its own, whatever else it is a synonym of.
    for at, name in enumerate((subject, object_)):
        for word in _forms(_plain(name)):
            if _plain(subject) != _plain(object_):
                owners[word] = (at,)
    longest = sorted(owners, key=len, reverse=True)
    parts = (re.escape(word) if _HAN.search(word) else _as_pattern(word) for word in longest)
    untold = tuple(not any(_HAN.search(word) for word in _words(name)) for name in (subject, object_))
    return Names(re.compile("|".join(parts)), owners, (untold[0], untold[1]))


def _as_pattern(word: str) -> str:
    return r"(?<![a-z0-9])" + re.escape(word).replace(r"\ ", "[ -]") + r"(?![a-z0-9])"


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


def _words(name: str) -> set[str]:
    plain = _plain(name)
    last = plain.rpartition(" ")[2]
    singular = _singular(plain)
    english, chinese = WORDS.get(plain) or WORDS.get(singular) or ((), ())
    words = {plain, singular, *english, *chinese}
    if last != plain and len(last) > 2 and plain not in _HEADLESS:
        words.add(last)
    return {form for word in words for form in _forms(word)}


def _forms(word: str) -> set[str]:
    """A word in one and in many; Chinese has one form."""
    word = word.replace("-", " ")
    return {word} if _HAN.search(word) else {word, _plural(word)}


def _plural(word: str) -> str:
    head, space, last = word.rpartition(" ")
    if last in IRREGULAR:
        plural = IRREGULAR[last]
    elif re.search(r"[^aeiou]y$", last):
        plural = f"{last[:-1]}ies"
    else:
        plural = f"{last}es" if re.search(r"(s|x|z|ch|sh)$", last) else f"{last}s"
    return head + space + plural


def _singular(word: str) -> str:
    if word in _SINGULAR:
        return _SINGULAR[word]
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    return word[:-1] if re.search(r"[^s]s$", word) and len(word) > 3 else word
