"""A request as a chat completion's body, and a reply as a completion or the error that it stands for."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import Any

from workers.engine.api import (
    Answer,
    CandidatesAlike,
    Completion,
    ControlTokens,
    EngineError,
    ImageUnreadable,
    PromptTooLong,
    Request,
    SamplingParams,
    SamplingUnknown,
    Segment,
    answer_of,
)
from workers.engine.openai.http_client import Reply

LIKELIEST = 20  # tokens whose probabilities a server gives at most (OpenAI's and vLLM's limit)
LONGEST_HOLD_S = 3600.0

#: What servers add to OpenAI's parameters (vLLM, SGLang, LMDeploy), and the value that switches it off. Left unsaid,
#: the checkpoint's own generation_config.json would decide.
EXTENSIONS: dict[str, Any] = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "min_tokens": 0}

# No tokenizer is at hand, so whatever looks like a control token counts as one: <|im_end|>, <think>, </s>, [INST].
_CONTROL = re.compile(r"<[|｜][^<>]{0,64}?[|｜]>|</?[A-Za-z_]{1,32}>|\[/?[A-Z_]{2,32}\]")
_TOO_LONG = re.compile(
    r"context.{0,10}length|context window|maximum model length|prompt.{0,20}too long|max_tokens", re.I
)
_IMAGE = re.compile(r"image|multi-?modal|picture|pixel|base64|aspect ratio|media", re.I)


class Busy(Exception):
    """The server wants less (429, or 503 with Retry-After); ``hold_s`` is how long it asks to be left alone, or 0."""

    def __init__(self, detail: str, hold_s: float) -> None:
        super().__init__(detail)
        self.hold_s = hold_s


class Trouble(Exception):
    """A reply that says more of the server than of the request: an error of its own, or nothing that can be read."""


class Refused(EngineError):
    """The server refuses a request, and would again."""


def body_of(request: Request, model: str, image_url: str, without: Sequence[str] = ()) -> bytes:
    """The JSON body: one user turn of the image and then the text, every sampling value said.

    ``without`` names extensions that the server does not know. Raises ControlTokens, and SamplingUnknown for a request
    that needs one of these.
    """
    text = plain_text(request.prompt)
    content = [{"type": "image_url", "image_url": {"url": image_url}}, {"type": "text", "text": text}]
    body = {"model": model, "messages": [{"role": "user", "content": content}], **sampling_values(request.sampling)}
    for name in without:
        if body.pop(name, None) not in (None, EXTENSIONS[name]):
            raise SamplingUnknown(f"the server does not know {name}, which this run sets; serve the model with vLLM")
    if request.candidates:
        body |= {"logprobs": True, "top_logprobs": LIKELIEST}
    return json.dumps(body).encode("ascii")


def sampling_values(sampling: SamplingParams) -> dict[str, Any]:
    """Every parameter that decides what is drawn (decision 9), so that no default of server or checkpoint does."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": 0.0,
        "max_tokens": sampling.max_new_tokens,
        "seed": sampling.seed % 2**31,  # not every server takes more bits
        "n": 1,
        "stream": False,
        **EXTENSIONS,
        "top_k": sampling.top_k or EXTENSIONS["top_k"],
        "repetition_penalty": sampling.repetition_penalty,
    }


def plain_text(prompt: Sequence[Segment]) -> str:
    """The prompt's text. Raises ControlTokens where a name would be read as a control token, in whole or in part."""
    whole = "".join(text for text, _ in prompt)
    data: list[tuple[int, int]] = []
    start = 0
    for text, is_data in prompt:
        if is_data:
            data.append((start, start + len(text)))
        start += len(text)
    for match in _CONTROL.finditer(whole):
        if any(first < match.end() and last > match.start() for first, last in data):
            raise ControlTokens(f"a name holds {match[0]!r}, which a chat server may read as a control token")
    return whole


def completion_of(reply: Reply, candidates: Sequence[str]) -> Completion:
    """The completion that a reply holds.

    Raises Busy and Trouble where asking again may help; PromptTooLong, ImageUnreadable and Refused where it does not.
    """
    if reply.status != 200:
        raise error_of(reply)
    try:
        answer = reply.json()
        choice = answer["choices"][0]
        reason, message = choice["finish_reason"], choice["message"]
        written, apart = message.get("content") or "", message.get("reasoning_content") or message.get("reasoning")
        usage = answer.get("usage") or {}
        tokens, prompt_tokens = int(usage.get("completion_tokens") or 0), int(usage.get("prompt_tokens") or 0)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Trouble(f"a reply that is no chat completion ({type(error).__name__}): {excerpt(reply)}") from error
    if reason in (None, "abort", "error"):
        raise Trouble(f"the server gave up in the middle of a text (finish reason {reason!r})")
    if reason not in ("stop", "length"):
        raise Refused(f"the server ended the text for a reason of its own: {reason!r}")
    answer = answer_of(str(written), opened=False)
    if apart:  # a server that parts them itself
        answer = Answer(answer.text, str(apart), closed=bool(answer.text))
    return Completion(
        answer.text,
        reason,
        tokens,
        prompt_tokens,
        probabilities_of(choice, candidates),
        answer.reasoning,
        answer.closed,
    )


def error_of(reply: Reply) -> Exception:
    """What a reply that is no success stands for."""
    said = f"{reply.status}: {excerpt(reply)}"
    hold_s = retry_after(reply.headers.get("retry-after"))
    if reply.status == 429 or (reply.status == 503 and hold_s):
        return Busy(said, hold_s)
    if reply.status in (408, 409, 425) or reply.status >= 500 or reply.status in (401, 403, 404):
        return Trouble(said)
    if reply.status == 413:
        return ImageUnreadable(f"the server finds the image too large ({said})")
    message = message_of(reply)
    if _TOO_LONG.search(message):
        return PromptTooLong(f"the server refuses the prompt ({said})")
    if _IMAGE.search(message):
        return ImageUnreadable(f"the server refuses the image ({said})")
    return Refused(f"the server refuses the request ({said})")


def message_of(reply: Reply) -> str:
    """The error's words, wherever a server puts them; else the body."""
    try:
        answer = reply.json()
        error = answer.get("error", answer)
        return str(error.get("message") or error.get("detail") or error) if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError):
        return reply.body[:2000].decode("utf-8", "replace")


def excerpt(reply: Reply) -> str:
    """A line of what the server said."""
    return " ".join(message_of(reply).split())[:300] or "(nothing)"


def retry_after(header: str | None) -> float:
    """Seconds of a ``Retry-After`` header, a number or a date (RFC 9110, 10.2.3); 0 where there is none."""
    if not header:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(0.0, seconds), LONGEST_HOLD_S) if math.isfinite(seconds) else 0.0


def probabilities_of(choice: dict[str, Any], candidates: Sequence[str]) -> tuple[float, ...]:
    """Each candidate's probability among the first token's likeliest; 0.0 for one that is not among them.

    A candidate's first token is taken to be the longest likely one that it begins with. Raises CandidatesAlike, and
    Refused where the server gives no probabilities.
    """
    if not candidates:
        return ()
    try:
        likely = choice["logprobs"]["content"][0]["top_logprobs"]
        chances = {str(entry["token"]): math.exp(float(entry["logprob"])) for entry in likely}
    except (LookupError, TypeError, ValueError) as error:
        raise Refused("the server gives no probabilities of next tokens (logprobs)") from error
    first = [max((token for token in chances if token and text.startswith(token)), key=len, default=None)
             for text in candidates]  # fmt: skip
    known = [token for token in first if token is not None]
    if len(set(known)) < len(known):
        raise CandidatesAlike(f"candidates that begin with the same token: {list(candidates)!r}")
    return tuple(0.0 if token is None else chances[token] for token in first)
