"""Statements of place in Chinese sentences whose two objects are marked (``mentions``)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from app.judge.claims import Claim, Relation

_PLACES: tuple[tuple[str, tuple[Relation, ...]], ...] = (
    ("左上", ("left", "above")), ("左下", ("left", "below")),
    ("右上", ("right", "above")), ("右下", ("right", "below")),
    ("左", ("left",)), ("右", ("right",)), ("上", ("above",)), ("下", ("below",)),
    ("内", ("inside",)), ("里", ("inside",)), ("中", ("inside",)),
)  # fmt: skip
_PLACE = (
    r"(?P<place>[左右][上下](?:方|角|侧|边|部|面)?|左手边|右手边|[左右](?:侧|边|方|面|部)?|[上下](?:方|面|边|部)|之上|之下|底下"
    r"|里面|里边|里头|内部|内侧|之内|之中|里(?!程)|内|中(?![间央心部等]))"
)
_MODIFIER = r"(?:的|之)?(?:正|稍微|稍|略微|略|偏|斜|最|紧邻|靠近|大致|大约)*(?:的)?"
_LANDMARK = re.compile(rf"§(?P<to>[01])\s*{_MODIFIER}\s*{_PLACE}")
_AFTERWARDS = re.compile(
    r"(?:位置|区域|处)?\s*[，,]?\s*(?:则|就|便|正|紧接着|还)?(?:是|为|有|站|坐|放|摆|停|挂|躺|趴|出现|可以看到|能看到|看到|存在)"
    r"(?:着|了|在)?[^§，,。]{0,10}§(?P<of>[01])"
)
_LOCATED = re.compile(r"(?:在|位于|处于|坐落于|居于|于|到|至)\s*[^§，,。在]{0,6}$")
_NOT = re.compile(
    r"(?:不|没有?|并非|而非|不是|而不是|并未|未)\s*(?:是)?(?:位|处|出现|放|站|坐)?(?:在|于)\s*[^§，,。]{0,6}$"
)
_MAYBE = re.compile(r"可能|也许|或许|如果|假如|要是")
_COMPARED = re.compile(
    r"§(?P<of>[01])\s*(?:的(?:位置|中心))?\s*(?:比|较之|相对于|相较于|相比于|相比)\s*§(?P<to>[01])\s*(?:来说|而言)?[，,]?\s*"
    r"(?:的位置)?(?:要|更|还|稍|略|明显|位置|处|为|加|位|靠|偏|居|于|在|得)*\s*(?P<place>左上|左下|右上|右下|左|右|上|下|高|低)"
)
_RELATIVE = re.compile(
    r"(?:相对于|相对|以|从)\s*§(?P<to>[01])\s*(?:为参照|为参考|为基准|来说|来看|而言|看)?[，,]?\s*§(?P<of>[01])\s*"
    r"(?:要|更|稍|略|明显|位置|处|位|靠|偏|居|于|在|其|它的)*\s*(?P<place>左上|左下|右上|右下|左|右|上方|下方)"
)
_HELD = re.compile(r"§(?P<one>[01])\s*(?:完全|整个|部分)?(?P<passive>被)?\s*(?:[^§，,。]{0,4}§(?P<two>[01]))?"
                   r"\s*(?:所|完全|整个)*(?:包含|容纳|囊括)(?:着|了|在内)?[^§，,。]{0,4}"
                   r"(?:§(?P<three>[01]))?")  # fmt: skip
_OVERLAP = re.compile(r"重叠|重合|交叠|相交|叠在一起|交集")
_NO_OVERLAP = re.compile(
    r"(?:不|没有|没|未|无|并未|互不|毫无|不存在|避免)[^，,。§]{0,6}(?:重叠|重合|交叠|相交|叠在一起|交集)"
)
_BOTH = re.compile(r"两者|二者|它们|他们|她们|两个|彼此|双方|之间|两物")
_IN_IMAGE = re.compile(
    r"§(?P<of>[01])\s*(?:都|则|就|大致|主要|出现|分布)?(?:在|位于|处于|于)\s*(?:整个|整张|整幅)?"
    r"(?:画面|图像|图片|照片|图|画幅|图中|画面中)(?:的|中的|中)?\s*(?:最|偏|靠)?"
    r"(?P<place>左上|左下|右上|右下|左|右|上|下)(?:侧|边|方|部|角|半)"
)
_SIDE = re.compile(
    r"§(?P<of>[01])\s*(?:则|就)?(?:在|位于|处于|居)\s*(?P<place>左|右|上|下)(?:侧|边|方|面)?(?=\s*(?:[，,、]|而|$))"
)
_OF_A_PART = re.compile(r"§[01]\s*[^§，,。]{0,8}的(?!位置|边界|中心|整体|身体|主体|[^，,。§]{0,6}[，,])[^，,。§]*$")


def claims_in(sentence: str) -> Iterator[Claim]:
    """What a sentence, its objects marked, says of their places."""
    if "§" not in sentence and not _OVERLAP.search(sentence):
        return
    for match in _LANDMARK.finditer(sentence):
        yield from _by_landmark(sentence, match)
    for pattern in (_COMPARED, _RELATIVE):
        for match in pattern.finditer(sentence):
            if match["of"] != match["to"]:
                yield from _claims(match["place"], int(match["of"]), int(match["to"]))
    for match in _IN_IMAGE.finditer(sentence):
        yield from _claims(match["place"], int(match["of"]), None)
    yield from _sides(sentence)
    yield from _held(sentence)
    together = "§0" in sentence and "§1" in sentence
    if (together or _BOTH.search(sentence)) and _OVERLAP.search(sentence) and not _MAYBE.search(sentence):
        yield Claim("overlapping", 0, 1, holds=not _NO_OVERLAP.search(sentence))


def _by_landmark(sentence: str, match: re.Match[str]) -> Iterator[Claim]:
    to = int(match["to"])
    before, after = sentence[: match.start()], sentence[match.end() :]
    if _MAYBE.search(re.split("[，,]", before)[-1]):
        return
    if _LOCATED.search(before):
        of = _located_before(_LOCATED.sub("", before), to)
        if of is not None:
            yield from _claims(match["place"], of, to, holds=not _NOT.search(before))
            return
    follows = _AFTERWARDS.match(after)
    if follows and int(follows["of"]) != to:
        yield from _claims(match["place"], int(follows["of"]), to)


def _located_before(before: str, to: int) -> int | None:
    """The object that is said to be somewhere: the last one named before, if it and no part of it is meant."""
    named = re.findall(r"§([01])", before)
    if named:
        return None if int(named[-1]) == to or _OF_A_PART.search(before) else int(named[-1])
    return 1 - to if re.search(r"(?:它|他|她|其|前者|后者)(?!们)[^，,。]{0,8}$", before) else None


def _sides(sentence: str) -> Iterator[Claim]:
    """ "A on the left, B on the right" says where each is to the other."""
    found = {match["of"]: match["place"] for match in _SIDE.finditer(sentence)}
    opposite = {"左": "右", "右": "左", "上": "下", "下": "上"}
    if len(found) == 2 and opposite[found["0"]] == found["1"]:
        yield from _claims(found["0"], 0, 1)


def _held(sentence: str) -> Iterator[Claim]:
    for match in _HELD.finditer(sentence):
        one, two, three = match["one"], match["two"], match["three"]
        if match["passive"] and two and two != one:
            yield Claim("inside", int(one), int(two))
        elif not match["passive"] and not two and three and three != one:
            yield Claim("inside", int(three), int(one))


def _claims(place: str, of: int, to: int | None, holds: bool = True) -> Iterator[Claim]:
    place = {"高": "上", "低": "下", "之上": "上", "之下": "下", "底下": "下", "之内": "内", "之中": "中"}.get(
        place, place
    )
    relations = next(relations for name, relations in _PLACES if place.startswith(name))
    if holds or len(relations) == 1:  # "not to the upper left" leaves open which of both is wrong
        for relation in relations:
            yield Claim(relation, of, to, holds)
