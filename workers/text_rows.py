"""A completion as the row keeps it, with what should not be taken for a good text marked."""

from __future__ import annotations

from typing import Any

from app.text_keys import Wanted
from workers.engine.api import Completion

TIMES, CHARACTERS = 4, 48
"""A text repeats itself if its end is one piece at least so many times, and these have at least so many characters."""

_LOOKED_AT = 4_000  # characters from the end: pieces of up to a thousand are found


def as_row(completion: Completion, wanted: Wanted) -> dict[str, Any]:
    """One description, with ``reasoning``, ``unclosed`` and ``repeats`` where they apply."""
    row: dict[str, Any] = {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "tokens": completion.tokens,
        "prompt_tokens": completion.prompt_tokens,
        "key": wanted.key,
        "predicate": wanted.predicate,
    }
    if completion.reasoning is not None:
        row["reasoning"] = completion.reasoning
    if not completion.closed:
        row["unclosed"] = True
    if repeats_itself(completion.text or completion.reasoning or ""):
        row["repeats"] = True
    return row


def repeats_itself(text: str) -> bool:
    """Whether the end of a text is one piece over and over, the last time perhaps in part.

    Read backwards, that is a beginning whose period is at most a quarter of it; the periods of all beginnings follow
    from the failure function of Knuth, Morris and Pratt (1977) in one pass.
    """
    tail = text[: -_LOOKED_AT - 1 : -1]
    failure = [0] * len(tail)
    matched = 0
    for at in range(1, len(tail)):
        while matched and tail[at] != tail[matched]:
            matched = failure[matched - 1]
        matched += tail[at] == tail[matched]
        failure[at] = matched
        if at + 1 >= max(CHARACTERS, TIMES * (at + 1 - matched)):
            return True
    return False
