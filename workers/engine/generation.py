"""What goes into an engine and what comes out: the whole of its interface.

The engine knows nothing of Celery, rows, runs or pairs. A caller submits generations (one prompt over one
picture each) and gets a future of a description for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from PIL.Image import Image

Segment = tuple[str, bool]
"""A piece of a prompt's text, and whether it is data (a name, a predicate): never a control token."""


@dataclass(frozen=True)
class Picture:
    """A picture that prompts refer to; equal keys promise equal pixels, so caches are keyed by it."""

    key: str
    load: Callable[
        [], Image
    ]  # gives an RGB image; whatever it raises fails the generations over this picture


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: softmax(logits / temperature), no top-p, no top-k; 0 is greedy.

    The draw for token ``t`` is the inverse of the cumulative distribution at a uniform number that depends on
    (seed, t) alone, so a text does not depend on the worker or the batch it was generated in.
    """

    temperature: float = 0.1
    max_new_tokens: int = 512
    seed: int = 0  # 64 bits; the caller derives it from (run seed, pair, predicate)


@dataclass(frozen=True)
class Generation:
    """One prompt over one picture: a user turn of the picture and then the text (all segments joined)."""

    picture: Picture
    prompt: tuple[Segment, ...]
    sampling: Sampling


@dataclass(frozen=True)
class Description:
    """What the model wrote: decoded new tokens without special ones."""

    text: str
    finish_reason: str  # "stop" (the model ended it) or "length" (max_new_tokens reached)
    tokens: int  # new tokens, the end token not counted
    prompt_tokens: int  # tokens of the prompt, visual ones included


class EngineError(Exception):
    """Base of what an engine raises for a generation that it cannot do."""


class PromptTooLong(EngineError):
    """The prompt and the longest answer do not fit the model's context."""


class PictureUnreadable(EngineError):
    """The picture could not be decoded or preprocessed."""


class EngineStopped(EngineError):
    """The engine was closed before the generation was done; it may be submitted elsewhere."""


class DeviceLost(EngineError):
    """The device failed for good (CUDA context gone): the process must end and be started anew."""


class Engine(Protocol):
    """The door behind which engines take each other's place."""

    def submit(self, generations: Sequence[Generation]) -> list[Future[Description]]:
        """Queue generations that belong together (one pair's); gives one future each, in order.

        Thread-safe, returns at once. A future fails with an ``EngineError`` or what ``Picture.load`` raised;
        one generation's failure does not touch the others.
        """
        ...

    def stats(self) -> dict[str, float]:
        """Counters since the start: pictures encoded, generations, tokens, seconds per phase, occupancy."""
        ...

    def close(self) -> None:
        """Stop within one decoding step; what is unfinished fails with ``EngineStopped``."""
        ...
