"""What goes into an engine and what comes out: the whole of its interface.

The engine knows nothing of Celery, rows, runs or pairs. A caller submits requests (one prompt over one
image each) and gets a future of a completion for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from PIL.Image import Image

Segment = tuple[str, bool]
"""A chunk of a prompt's text, and whether it is data (a name, a predicate) that must never become a control token."""


NO_TOKEN = -1
"""In place of a token, where the logits that it would be drawn from are not finite."""


@dataclass(frozen=True)
class ImageSource:
    """An image that prompts refer to; equal keys promise equal pixels, so caches are keyed by it."""

    key: str
    load: Callable[[], Image]  # gives an RGB image; whatever it raises fails the requests over this image
    min_pixels: int | None = None  # bounds of what it is scaled to; None is the engine's or the model's own
    max_pixels: int | None = None


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is drawn: of the logits, penalised, softmax(logits / temperature), and of that the tokens
    within top-k and then within top-p; temperature 0 is greedy. All engines mean the same by them (vLLM's order).

    The draw for token ``t`` is the inverse of the cumulative distribution at a uniform number that depends on
    (seed, t) alone, so a completion does not depend on the worker or the batch that it was generated in.
    """

    temperature: float = 0.1
    max_new_tokens: int = 512
    seed: int = 0  # 64 bits; the caller derives it from (run seed, pair, predicate)
    top_p: float = 1.0  # the likeliest tokens whose chances reach this together; 1 is all
    top_k: int = 0  # so many of the likeliest tokens; 0 is all
    repetition_penalty: float = 1.0  # divides positive logits of tokens in prompt or output, multiplies negative ones
    presence_penalty: float = 0.0  # subtracted from the logits of tokens in the output

    @property
    def penalises(self) -> bool:
        """Whether what was written before changes the logits."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0

    @property
    def truncates(self) -> bool:
        """Whether only some of the tokens may be drawn."""
        return self.temperature > 0 and (self.top_p < 1.0 or self.top_k > 0)


@dataclass(frozen=True)
class Written:
    """A row of logits whose sampling is more than its temperature: what that needs to know."""

    sampling: SamplingParams
    prompt: Sequence[int]  # token ids, those of the image included
    output: Sequence[int]  # token ids written so far


@dataclass(frozen=True)
class Request:
    """One prompt over one image: a user turn of the image and then the text (all segments joined)."""

    image: ImageSource
    prompt: tuple[Segment, ...]
    sampling: SamplingParams
    candidates: tuple[str, ...] = ()  # texts, of whose first tokens the probability of coming next is wanted


@dataclass(frozen=True)
class Completion:
    """What the model wrote."""

    text: str  # decoded output tokens, special ones skipped; of a reasoning model the answer alone
    finish_reason: str  # "stop" (the model ended it) or "length" (max_new_tokens reached)
    tokens: int  # of output, the end token not counted
    prompt_tokens: int  # tokens of the prompt, visual ones included
    probabilities: tuple[float, ...] = ()
    """For each of the request's candidates the probability, 0 to 1, that its first token is the first new one: the
    softmax over the whole vocabulary of the logits as they are (temperature 1), whatever the sampling.
    """
    reasoning: str | None = None  # what it wrote before its answer, where it reasons
    closed: bool = True  # False where the reasoning never came to an end: there is no answer


THINK_BEGIN, THINK_END = "<think>", "</think>"
"""What a reasoning model (Qwen's "Thinking" ones and others) puts around what comes before its answer."""


class Answer(NamedTuple):
    """A text, parted into the answer and what led to it."""

    text: str
    reasoning: str | None
    closed: bool


def answer_of(written: str, *, opened: bool) -> Answer:
    """Part a text at the end of its reasoning.

    ``opened``: the prompt has begun the reasoning already. A text that only closes one was opened by a prompt that
    nobody here has seen. Where it never closes, all of it is reasoning.
    """
    begun = written.lstrip().startswith(THINK_BEGIN)
    reasoning, close, answer = written.partition(THINK_END)
    if not (opened or begun or close):
        return Answer(written, None, True)
    reasoning = reasoning.strip().removeprefix(THINK_BEGIN).strip()
    return Answer(answer.strip() if close else "", reasoning, bool(close))


class EngineError(Exception):
    """Base of what an engine raises for a request that it cannot do."""


class PromptTooLong(EngineError):
    """The prompt and the longest answer do not fit the model's context."""


class ImageUnreadable(EngineError):
    """The image could not be decoded or preprocessed."""


class CannotServe(EngineError):
    """This engine cannot serve this model or configuration at all; the message says which can, and what to install."""


class CandidatesAlike(EngineError):
    """Two candidates of a request begin with the same token, so that their probabilities cannot be told apart."""


class ControlTokens(EngineError):
    """A name holds a control token, and this engine has no way to pass it on as plain text (decision 13)."""


class LogitsNotFinite(EngineError):
    """The model gave NaN or infinity in place of logits: whatever token is drawn then means nothing."""


class SamplingUnknown(EngineError):
    """The request asks for a way of sampling that this engine does not have; the message names it."""


class EngineStopped(EngineError):
    """The engine was closed before the request was done; it may be submitted elsewhere."""


class TooLittleMemory(EngineError):
    """The device has no room for the model and a batch worth running."""


class DeviceLost(EngineError):
    """The device failed for good (CUDA context gone): the process must end and be started again."""


class Engine(Protocol):
    """The interface behind which engines take each other's place."""

    def submit(self, requests: Sequence[Request]) -> list[Future[Completion]]:
        """Queue requests that belong together (one pair's); gives one future each, in order.

        Thread-safe, returns at once. A future fails with an ``EngineError`` or what ``ImageSource.load`` raised; one
        request's failure does not touch the others.
        """
        ...

    def stats(self) -> dict[str, float]:
        """Counters since the start: images encoded, requests, tokens, seconds per phase, occupancy."""
        ...

    def close(self) -> None:
        """Stop within one decoding step; what is unfinished fails with ``EngineStopped``."""
        ...
