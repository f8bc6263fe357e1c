"""What a text's wording alone tells: its language, whether it repeats itself, speaks of the prompt, refuses."""

from __future__ import annotations

import re
from collections import Counter
from typing import Literal

Language = Literal["zh", "en"]
LANGUAGES: tuple[Language, ...] = ("zh", "en")

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_LATIN = re.compile(r"[a-z\u00c0-\u024f]+(?:'[a-z]+)?")
_OTHER = re.compile(r"[\u0370-\u1fff\u3040-\u30ff\uac00-\ud7af]")  # Greek to Ethiopic, kana, hangul
_TOKEN = re.compile(r"[^\W\d_\u3400-\u9fff]+|\d+|[\u3400-\u9fff]")
_SENTENCE = re.compile(r"[.!?;\n\u3002\uff01\uff1f\uff1b]+")

_ENGLISH_WORDS = (
    "the a an is are was of and in on to with at it its this that there which as by from for not or near while has "
    "be they both their his her he she into over under above below behind left right"
)
_FOREIGN_WORDS = (  # the most usual ones of French, German, Spanish, Italian, Portuguese, Dutch
    "le la les un une des du est et dans sur avec pour qui de au der die das ein eine ist und auf mit dem den von zu "
    "el los las una es y en con por para que del lo il uno di sul della nel che o os uma do da no na com het een van "
    "op met naar zijn sind neben links rechts gauche droite izquierda derecha"
)
_ENGLISH, _FOREIGN = frozenset(_ENGLISH_WORDS.split()), frozenset(_FOREIGN_WORDS.split())

_PROMPT = re.compile(
    r"\bas (?:you |was |i was )?(?:requested|instructed|asked|specified)\b|\bthe (?:prompt|question|instructions?)\b"
    r"|\byou(?:'ve| have)? (?:provided|asked|mentioned|described|given|gave|specified|requested)\b"
    r"|\byour (?:question|request|description|prompt|query|instructions?|input)\b|\b(?:the )?user(?:'s)?\b"
    r"|\bbounding box(?:es)?\b|\bcoordinates?\b|\bobject_ref|\bbox_(?:start|end)|\b(?:provided|given) (?:box|text"
    r"|prompt|descri|position|location|relation|predicate|information)|^\W*(?:sure|certainly|of course|okay)\b"
    r"|^\W*here(?:'s| is| are)\b|\blet me (?:describe|explain|provide|know)\b|\bi(?:'ll| will) (?:describe|give"
    r"|provide)|\bif you (?:need|want|have|would)\b|\broughly described as\b"
    r"|提示词|提示语|提示中|指令|题目|题中|用户|[您你](?:所)?(?:提供|给出|描述|提到|要求|问|指定)|[您你]的(?:问题|描述|要求|提示|请求)"
    r"|(?:根据|按照|依据)(?:所给|给定|提供|给出|上述要求|要求)|边界框|坐标|检测框|标注框|以下是|^\W*(?:好的|当然|没问题)"
    r"|如果[您你](?:需要|想|还)|希望(?:这|以上).{0,8}(?:帮助|有用)"
)
_REFUSAL = re.compile(
    r"\bi(?:'m| am)(?: very| really| so)? (?:sorry|unable|not able|afraid)\b|\b(?:sorry|apologi[sz]e|apologies)\b"
    r"|\bi (?:can ?not|can't|could not|couldn't|won't|will not|am unable to|do not|don't) (?:\w+ )?(?:see|determine"
    r"|view|identify|describe|provide|assist|help|tell|confirm|answer|analy[sz]e|access|process|comply|have|make)\b"
    r"|\bas an? (?:ai|artificial|language)\b|\b(?:not possible|impossible|unable) to (?:determine|tell|describe|say|see"
    r"|identify|provide|answer|make)\b|\bcannot be (?:determined|described|identified|answered)\b"
    r"|\bno image (?:was|is|has been|provided)\b|\bthere is no image\b"
    r"|抱歉|对不起|很遗憾|作为(?:一个|一名|一款)?(?:ai|人工智能|语言模型|助手)|我(?:无法|不能|没办法|没法|看不到|看不见)"
    r"|(?:无法|没办法|没法|不能|难以)(?:为您|为你|给出|提供|描述|回答|查看|完成|协助|帮助|看到|访问|处理)"
    r"|^.{0,30}(?:无法|不能)(?:确定|判断|识别|辨认)|没有(?:看到|收到|提供)(?:任何)?(?:图|照)|未(?:看到|收到|提供)(?:任何)?(?:图|照)"
)


def language_of(text: str) -> Language:
    """The language that most of a text is in, of those that prompts are in."""
    han, words = len(_HAN.findall(text)), len(_LATIN.findall(text.lower()))
    return "zh" if han > words else "en"


def is_in_another(text: str, language: Language) -> bool:
    """Whether a text, without the objects' names, is in another language. Nothing is said of a text of names alone."""
    text = text.lower()
    words = _LATIN.findall(text)
    han, latin, other = len(_HAN.findall(text)), len(words), len(_OTHER.findall(text))
    if other > 3 and other > (han + sum(map(len, words))) * 0.3:
        return True
    if language == "zh":
        return latin > han / 2 and latin > 1
    if han > 1 and han > latin:
        return True
    english = sum(word.split("'")[0] in _ENGLISH for word in words)
    return latin >= 5 and sum(word in _FOREIGN for word in words) > max(english, latin * 0.15)


def repeats_itself(text: str) -> bool:
    """Whether a text says a sentence of five words (eight Chinese characters) twice, or goes in circles."""
    text = text.lower()
    sentences = [tuple(_TOKEN.findall(part)) for part in _SENTENCE.split(text)]
    long = Counter(each for each in sentences if len(each) >= (8 if _HAN.search("".join(each)) else 5))
    if any(number > 1 for number in long.values()):
        return True
    tokens = _TOKEN.findall(text)
    if any(_in_circles(tokens, length) for length in range(1, 13)):
        return True
    fours = len(tokens) - 3
    return fours >= 40 and len(set(zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False))) < 0.6 * fours


def speaks_of_prompt(text: str) -> bool:
    """Whether a text speaks of the prompt or its boxes, or to a reader who wrote it."""
    return bool(_PROMPT.search(text.lower()))


def refuses(text: str) -> bool:
    """Whether a text says that it cannot or will not tell."""
    return bool(_REFUSAL.search(text.lower().replace("\u2019", "'")))


def _in_circles(tokens: list[str], length: int) -> bool:
    """Whether ``length`` tokens follow themselves, at once and three times in all (a single one: four times)."""
    needed, same = (3 if length == 1 else 2 * length), 0
    for token, later in zip(tokens, tokens[length:], strict=False):
        same = same + 1 if token == later and not token.isdigit() else 0
        if same >= needed:
            return True
    return False
