"""Statements of place in English sentences whose two objects are marked (``mentions``).

A statement is taken only where both its ends are sure: the landmark follows the words of place with nothing but
articles and adjectives between, and what stands before them is the other object with nothing but a verb of being or
of posture between. Whatever else a sentence says of place is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from app.judge.claims import Claim, Relation

_SIDE_OF = r"(?:[- ]hand)?(?:[- ](?:side|part|half))?\s+of"
_TO_THE = r"(?:(?:to|on|at|in|toward|towards)\s+the\s+)?(?:(?:immediate|far|direct|near)\s+)?"
_PHRASES: tuple[tuple[str, tuple[Relation, ...]], ...] = (
    (rf"{_TO_THE}(?:upper|top|above)[- ]left{_SIDE_OF}", ("left", "above")),
    (rf"{_TO_THE}(?:upper|top|above)[- ]right{_SIDE_OF}", ("right", "above")),
    (rf"{_TO_THE}(?:lower|bottom|below)[- ]left{_SIDE_OF}", ("left", "below")),
    (rf"{_TO_THE}(?:lower|bottom|below)[- ]right{_SIDE_OF}", ("right", "below")),
    (rf"{_TO_THE}left{_SIDE_OF}|(?:further|farther|more)\s+(?:to\s+the\s+)?left\s+than", ("left",)),
    (rf"{_TO_THE}right{_SIDE_OF}|(?:further|farther|more)\s+(?:to\s+the\s+)?right\s+than", ("right",)),
    (r"on\s+top\s+of|atop", ("on top",)),
    (r"above|higher\s+(?:up\s+)?(?:in\s+the\s+(?:image|picture|frame)\s+)?than", ("above",)),
    (r"below|beneath|underneath|under|lower\s+(?:down\s+)?(?:in\s+the\s+(?:image|picture|frame)\s+)?than", ("below",)),
    (r"inside(?:\s+of)?|within|(?:contained|enclosed)\s+(?:in|within|by|inside)", ("inside",)),
    (r"overlap(?:s|ped|ping)?(?:\s+(?:with|partially|slightly|partly))*", ("overlapping",)),
)
_PLACE = "|".join(f"(?P<p{at}>{phrase})" for at, (phrase, _) in enumerate(_PHRASES))
_WORDS = re.compile(rf"\b(?:{_PLACE})(?!\w)")
_ANY = re.compile(r"left|right|above|below|under|neath|inside|within|contain|enclos|encomp|overlap|top|er than|bottom")
_ADVERB = r"(?:slightly|directly|just|clearly|immediately|partially|partly|entirely|completely|fully|somewhat|well)"
_NO_ADJECTIVE = (
    r"(?!(?:is|are|was|and|of|with|while|that|which|in|on|at|from|to|but|or|nor|where|as|by|for|than|has|have|not)\b)"
)
_LANDMARK = re.compile(
    rf"\s*(?:\s{_NO_ADJECTIVE}[\w-]+){{0,4}}?\s+§(?P<to>[01])(?!\s*'s)|\s+(?P<it>it|him|them|her)\b(?=\s*(?:[,.]|$|and\b|in\b))"
)
_AND_ALSO = re.compile(rf"\s*,?\s+(?:and|but)\s+(?:(?:also|{_ADVERB})\s+)*(?:{_WORDS.pattern.replace('?P<p', '?P<q')})")

_BEING = (
    "is are was were be being appears appear seems lies sits stands hangs rests remains located positioned situated"
)
_LINK = frozenset(
    (
        f"{_BEING} placed seen visible lying sitting standing hanging resting found shown set directly slightly just "
        "clearly roughly almost partially partly entirely completely fully immediately somewhat mostly generally also "
        "both to and but then , which that who not never isn't aren't wasn't doesn't don't does do positioned well a "
        "bit little far further up down high higher low lower nor neither physically actually either"
    ).split()
)
_VERBS = frozenset(f"{_BEING} isn't aren't wasn't does doesn't overlaps".split())
_NO = frozenset(("not", "never", "isn't", "aren't", "wasn't", "doesn't", "don't", "nor", "neither", "without"))
_MAYBE = re.compile(r"\b(?:may|might|could|would|if|perhaps|possibly|whether|should|or)\b")
_INSTEAD = re.compile(r"(?:rather than|instead of|not)\s+(?:being\s+)?(?:\w+ly\s+)?$")
_BREAK = re.compile(r"(?:,\s*(?:and|while|but|whereas|with|as)\b|\b(?:while|whereas|but)\b|[;:])")
_ATTRIBUTE = re.compile(r"\s*(?:,|\w+ing\b|\w+ed\b|with\b|in\b|who\b|which\b|that\b)")
_INVERTED = re.compile(
    rf"\s*,?\s*(?:there\s+)?(?:{'|'.join(_BEING.split())}|we (?:can )?see|you (?:can )?see|one (?:can )?sees?)\s+"
    rf"(?:{_NO_ADJECTIVE}[\w-]+\s+){{0,5}}?§(?P<of>[01])|\s*,\s+(?:(?:the|a|an)\s+)?(?:{_NO_ADJECTIVE}[\w-]+\s+){{0,3}}?§(?P<of2>[01])"
)
_HOLDS = re.compile(
    rf"§(?P<one>[01])\s+(?:(?:{_ADVERB}|is)\s+)*(?:contains|encloses|encompasses|containing|enclosing)\s+"
    rf"(?:{_NO_ADJECTIVE}[\w-]+\s+){{0,4}}?§(?P<two>[01])"
)
_TOGETHER = re.compile(
    r"(?:\bthey\b|\bboth\b|\bthe two\b(?:\s+\w+)?|\btheir \w+(?: \w+)?|§[01]\s+and\s+(?:[\w-]+\s+){0,4}?§[01]"
    r"|\bboxes\b|\bobjects\b|\bshapes\b)\s+(?P<mid>(?:[\w']+\s+){0,4}?)(?:overlap\b|overlapping\b|overlapped\b)"
)
_NO_OVERLAP = re.compile(r"\b(?:no|without|any|non)\b[\s-]+(?:\w+\s+)?overlap|\bnot\b[^,;]{0,20}\boverlap")
_SOME_OVERLAP = re.compile(
    r"\b(?:there is|with|has|have|show|showing)\s+(?:an?|some|partial|slight|no|any)\s+(?:\w+\s+)?overlap"
)
_SIDES = {"left": "left", "right": "right", "top": "above", "bottom": "below", "upper": "above", "lower": "below"}
_ABSOLUTE = re.compile(
    r"§(?P<of>[01])\s+(?P<link>(?:[\w']+\s+){0,4}?)(?:on|at|in|to|toward|towards|near)\s+the\s+(?:far\s+|very\s+)?"
    r"(?P<side>left|right|top|bottom|upper|lower)(?P<side2>[- ](?:left|right))?(?:[- ]hand)?"
    r"(?:\s+(?:side|part|half|portion|edge|corner))?"
    r"(?P<image>\s+of\s+the\s+(?:image|picture|photo|photograph|frame|scene|view))?(?=\s*(?:,|$|and\b|while\b|whereas\b|but\b))"
)


def claims_in(sentence: str) -> Iterator[Claim]:
    """What a sentence, its objects marked, says of their places."""
    if not _ANY.search(sentence):
        return
    for match in _WORDS.finditer(sentence):
        yield from _stated(sentence, match)
    for match in _HOLDS.finditer(sentence):
        if match["one"] != match["two"]:
            yield Claim("inside", int(match["two"]), int(match["one"]))
    yield from _overlap(sentence)
    yield from _absolute(sentence)


def _stated(sentence: str, match: re.Match[str]) -> Iterator[Claim]:
    before, end = sentence[: match.start()], match.end()
    while more := _AND_ALSO.match(sentence, end):  # "above and to the left of": one landmark for both
        end = more.end()
    landmark = _LANDMARK.match(sentence, end)
    if landmark is None:
        return
    clause = before[max((found.end() for found in _BREAK.finditer(before)), default=0) :]
    if _MAYBE.search(clause):
        return
    to = None if landmark["to"] is None else int(landmark["to"])
    of, denied = _trajector(before, clause, to, sentence[landmark.end() :])
    if of is None or of == to or (to is None and not _is_meant(before, of)):
        return
    for relation in _relations(match):
        yield Claim(relation, of, 1 - of, holds=not denied)


def _is_meant(before: str, of: int) -> bool:
    """Whether "it", said of the place of an object, is the other one: it was named, and nothing else was since."""
    named = before.rfind(f"§{1 - of}")
    others = re.search(r"\b(?:the|a|an)\s+(?!(?:[\w-]+\s+)?§)|\bnot\b|\bthan\b|\bof\b", before[named:])
    return named >= 0 and not others


def _relations(match: re.Match[str]) -> tuple[Relation, ...]:
    return next(relations for at, (_, relations) in enumerate(_PHRASES) if match[f"p{at}"])


def _trajector(before: str, clause: str, to: int | None, after: str) -> tuple[int | None, bool]:
    """Which object the words of place are said of, None where that is not sure; and whether it is denied."""
    rest, link = _without_link(before)
    denied = bool(_NO & set(link)) or bool(_INSTEAD.search(before))
    if not rest:
        found = _INVERTED.match(after)
        of = None if found is None else found["of"] or found["of2"]
        return (None if of is None else int(of)), denied
    if found := re.search(r"§([01])\s*$", rest):
        return int(found[1]), denied
    if re.search(r"\b(?:it|he|she|they)\s*$", rest) and to is not None:
        return 1 - to, denied
    if _VERBS & set(link) or _INSTEAD.search(before):
        return _grammatical_subject(clause), denied
    return None, denied


def _without_link(before: str) -> tuple[str, list[str]]:
    """A text without what only links an object to its place at its end, and the words of that, last first."""
    rest, link = _strip_places(before.rstrip()), []
    while found := re.search(r"(?:[\w'-]+|,)$", rest):
        word = found.group()
        if re.search(r"§[01]$", rest) or not (word in _LINK or word.endswith("ly")):
            break
        link.append(word)
        rest = _strip_places(rest[: found.start()].rstrip())
    return rest, link


def _strip_places(text: str) -> str:
    """ "is above and" before "to the left of": the first place has the same trajector."""
    while found := re.search(rf"(?:{_WORDS.pattern})\s*,?\s*(?:and|but)?\s*$".replace("?P<p", "?P<s"), text):
        text = text[: found.start()].rstrip()
    return text


def _grammatical_subject(clause: str) -> int | None:
    """The object that a clause begins with, where what follows it can only be its attributes."""
    found = re.match(r"\s*(?:and\s+)?(?:(?!is\b|are\b)[\w-]+\s+){0,4}?§([01])", clause)
    if found is None or not _ATTRIBUTE.match(clause, found.end()) or "'s" in clause[found.end() : found.end() + 3]:
        return None
    return int(found[1])


def _overlap(sentence: str) -> Iterator[Claim]:
    for match in _TOGETHER.finditer(sentence):
        if not _MAYBE.search(match["mid"]):
            yield Claim("overlapping", 0, 1, holds=not (_NO & set(match["mid"].split())))
    if "§0" in sentence or "§1" in sentence or re.search(r"\b(?:they|them|both|two)\b", sentence):
        if _NO_OVERLAP.search(sentence) and not _TOGETHER.search(sentence):
            yield Claim("overlapping", 0, 1, holds=False)
        elif _SOME_OVERLAP.search(sentence) and not _MAYBE.search(sentence):
            yield Claim("overlapping", 0, 1)


def _absolute(sentence: str) -> Iterator[Claim]:
    found: dict[int, str] = {}
    for match in _ABSOLUTE.finditer(sentence):
        link = match["link"].split()
        if _NO & set(link) or _MAYBE.search(match["link"]) or not all(w in _LINK or w.endswith("ing") for w in link):
            continue
        of = int(match["of"])
        sides = [match["side"], *([match["side2"].strip("- ")] if match["side2"] else [])]
        found.setdefault(of, _SIDES[sides[0]])
        if match["image"]:
            for side in sides:
                yield from _one(_SIDES[side], of, None)
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
    if len(found) == 2 and opposite[found[0]] == found[1]:
        yield from _one(found[0], 0, 1)


def _one(side: str, of: int, to: int | None) -> Iterator[Claim]:
    for relation in ("left", "right", "above", "below"):
        if side == relation:
            yield Claim(relation, of, to)  # type: ignore[arg-type]
