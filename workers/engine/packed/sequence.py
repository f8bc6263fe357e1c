"""A request on its way through the packed engine, the group whose beginning it shares, and a step of many. No torch.

All prompts over an image share its prefix, all prompts of one submit (a pair's) what they begin with after it:
image -> group -> sequence.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from workers.engine.api import SamplingParams
from workers.engine.runner.step import Blocks, no_blocks

WORTH_SHARING = 8  # tokens: a shorter common beginning costs more in bookkeeping than it saves


@dataclass(eq=False)
class SequenceGroup:
    """Sequences of one submit over one image, whose prompts begin alike."""

    image_key: str
    image_token_ids: list[int]  # up to the last visual token: all prompts over the image share them
    shared_token_ids: list[int]  # what they share after these; empty where sharing does not pay
    waiting: deque[Sequence] = field(default_factory=deque)
    slot: int | None = None  # where the shared prefix's keys and values are, once they are computed
    blocks: Blocks = field(default_factory=no_blocks)  # of a paged KV cache
    num_running: int = 0

    @property
    def num_own_tokens(self) -> int:
        """Tokens that one of its waiting sequences may need at most."""
        return max((sequence.max_slot_tokens for sequence in self.waiting), default=0)


@dataclass(eq=False)
class Sequence:
    """One request and what has been written for it."""

    pending: Any  # carried along for the engine, unread here
    group: SequenceGroup
    suffix_token_ids: list[int]  # the prompt's, after what is shared
    num_prompt_tokens: int
    max_tokens: int  # of output
    temperature: float
    seed: int
    candidates: list[int] = field(default_factory=list)  # ids whose probability as the first new token is wanted
    probabilities: tuple[float, ...] = ()  # theirs, once the first token is written
    output_token_ids: list[int] = field(default_factory=list)
    blocks: Blocks = field(default_factory=no_blocks)  # of a paged KV cache, while it runs
    sampling: SamplingParams | None = None  # beyond temperature and seed, where there is more

    @property
    def prompt_token_ids(self) -> list[int]:
        """The whole prompt's."""
        return [*self.group.image_token_ids, *self.group.shared_token_ids, *self.suffix_token_ids]

    @property
    def num_tokens(self) -> int:
        """Tokens of its own: what its slot holds (all but the newest) and the newest."""
        return len(self.suffix_token_ids) + len(self.output_token_ids)

    @property
    def max_slot_tokens(self) -> int:
        """Tokens its slot must have room for."""
        return len(self.suffix_token_ids) + self.max_tokens

    @property
    def max_context_tokens(self) -> int:
        """Tokens of the whole prompt and the longest output."""
        return self.num_prompt_tokens + self.max_tokens


@dataclass(frozen=True)
class SchedulerOutput:
    """One step: ``decode`` goes on by a token, prompts are prefilled; it says so whatever happens to them later."""

    decode: tuple[Sequence, ...]  # in slots 0, 1, ..
    scheduled_new: tuple[Sequence, ...]  # in the slots after those that run
    shared_groups: tuple[SequenceGroup, ...] = ()  # whose shared prefix is prefilled, for their sequences to follow
    followers: tuple[Sequence, ...] = ()  # those sequences, still waiting
    first_slot: int | None = None  # of ``scheduled_new``; None: the one after ``decode``'s

    @property
    def sampled(self) -> tuple[Sequence, ...]:
        """The sequences that get a token."""
        return self.decode + self.scheduled_new

    @property
    def involved(self) -> tuple[Sequence, ...]:
        """The sequences that may be at fault where the step fails."""
        return self.sampled + self.followers


def split_shared(num_image_tokens: int, prompts: list[list[int]]) -> tuple[list[int], int]:
    """What prompts over one image share beyond its ``num_image_tokens``, and where each one's suffix begins.

    A prompt alone shares its beginning with nobody, but is laid out the same way: rows whose own tokens are equally
    many attend together without padding. The last token of a prompt is never shared: a sequence has at least one
    token of its own to go on from.
    """
    first, last = min(prompts), max(prompts)
    end = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    end = min(end, min(map(len, prompts)) - 1)
    if end - num_image_tokens < WORTH_SHARING:
        return [], num_image_tokens
    return first[num_image_tokens:end], end
