"""What crosses from the policy to the runner: a step's tokens, where its keys and values are, and how large all is.

No torch: the policy builds these, a backend lays them out as tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Blocks = np.ndarray
"""(blocks,) int32: numbers of blocks of a paged KV cache, in the order of the tokens that they hold."""


def no_blocks() -> Blocks:
    """Those of what is not in a paged KV cache."""
    return np.zeros(0, dtype=np.int32)


@dataclass(frozen=True)
class KVSpan:
    """The first ``length`` tokens of a slot."""

    slot: int
    length: int
    blocks: Blocks = field(default_factory=no_blocks, compare=False, repr=False)  # of a paged KV cache: (n,) int32


@dataclass(frozen=True)
class KVCacheSizes:
    """Slots of each level of the KV cache, and the tokens that a slot holds; there are as many slots for groups as
    for sequences.
    """

    images: int
    image_tokens: int
    slots: int
    group_tokens: int
    sequence_tokens: int
    blocks: int = 0  # of a paged KV cache, whose slots hold no tokens themselves


@dataclass(frozen=True)
class KVCacheSlots:
    """Slots of each level of the KV cache."""

    images: Iterable[int]
    groups: Iterable[int]
    sequences: Iterable[int]


@dataclass(frozen=True)
class DecodeToken:
    """A running sequence's newest token; the i-th of a step reads and writes slot i of the sequences."""

    token_id: int
    position: int  # rotary position
    offset: int  # where in its slot the token goes
    image: KVSpan | None  # None only for the tokens that fill up a fixed shape
    group: KVSpan | None
    blocks: Blocks = field(default_factory=no_blocks, compare=False, repr=False)  # its own


@dataclass(frozen=True)
class PrefillChunk:
    """Tokens of a prompt: they see their spans whole and each other causally, and are stored in a slot."""

    token_ids: list[int]
    position: int  # rotary position of the first token
    image: KVSpan
    group: KVSpan | None  # the shared prefix they follow; None for that prefix itself, or where there is none
    slot: int  # of the sequences, or of the groups where ``shared``
    shared: bool  # whether this is a group's shared prefix, which nothing is sampled after
    blocks: Blocks = field(default_factory=no_blocks, compare=False, repr=False)  # where it is stored

    @property
    def order(self) -> tuple[bool, int, int]:
        """Sorts chunks so that those over one span are neighbours."""
        return (self.shared, self.image.slot, -1 if self.group is None else self.group.slot)


@dataclass(frozen=True)
class SamplingMetadata:
    """How the next tokens are drawn, one entry for each row of a step's logits."""

    temperatures: Sequence[float]
    seeds: Sequence[int]  # of 64 bits
    steps: Sequence[int]  # output tokens so far
    candidates: Sequence[Sequence[int]]  # token ids whose probabilities are wanted; mostly none
    written: Sequence[Any] = ()  # what ``sampling.adjusted`` takes, carried along unread


@dataclass(frozen=True)
class StepOutput:
    """What a step gives, one entry for each row of its logits."""

    token_ids: list[int]  # the next tokens; NO_TOKEN where the logits are not finite
    probabilities: list[tuple[float, ...]]  # of the candidates


@dataclass(frozen=True)
class PackedTokens:
    """A step's tokens one after another: those that decode, then the chunks in their ``order``."""

    token_ids: np.ndarray  # (tokens,) int64
    positions: np.ndarray  # (tokens,) int64, rotary
    logits_indices: np.ndarray  # (rows,) int64: tokens to sample after, in the order in which they were given
    chunks: list[PrefillChunk]  # sorted by their ``order``


def pack_tokens(decode: Sequence[DecodeToken], prefill: Sequence[PrefillChunk]) -> PackedTokens:
    """Lay out a step; the rows of its logits are the ``decode`` tokens, then the chunks that are not ``shared``."""
    by_order = sorted(range(len(prefill)), key=lambda at: prefill[at].order)
    chunks = [prefill[at] for at in by_order]
    ends = np.cumsum([len(decode), *(len(chunk.token_ids) for chunk in chunks)])[1:] - 1
    last = dict(zip(by_order, ends, strict=True))
    sampled = [last[at] for at, chunk in enumerate(prefill) if not chunk.shared]
    token_ids = [token.token_id for token in decode] + [id_ for chunk in chunks for id_ in chunk.token_ids]
    positions = [np.array([token.position for token in decode], dtype=np.int64)]
    positions += [np.arange(len(chunk.token_ids)) + chunk.position for chunk in chunks]
    return PackedTokens(
        token_ids=np.array(token_ids, dtype=np.int64),
        positions=np.concatenate(positions),
        logits_indices=np.array([*range(len(decode)), *sampled], dtype=np.int64),
        chunks=chunks,
    )
