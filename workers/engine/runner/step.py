"""The tokens of one step: what decodes, what is prefilled, and which keys and values each sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class KVSpan:
    """A slot of a stack and how many tokens of it count."""

    slot: int
    length: int


@dataclass(frozen=True)
class DecodeToken:
    """A sequence that decodes one token; row i reads and writes slot i of the own stack."""

    token: int
    position: int  # rotary position of the token
    at: int  # where in its slot the token goes
    image: KVSpan | None  # None only for the rows that fill up a fixed shape
    group: KVSpan | None


@dataclass(frozen=True)
class PrefillChunk:
    """Tokens to prefill: they see their prefixes whole and each other causally, and are stored in a slot."""

    ids: list[int]
    position: int  # rotary position of the first token
    image: KVSpan
    group: KVSpan | None  # the shared text they follow; None for that text itself, or where there is none
    target: int  # slot in the own stack, or in the groups' stack for a shared text
    shared: bool  # whether this is a group's shared text

    @property
    def order(self) -> tuple[bool, int, int]:
        """Sorts chunks so that those over one prefix are neighbours."""
        return (self.shared, self.image.slot, -1 if self.group is None else self.group.slot)


def logits_indices(rows: int, chunks: list[PrefillChunk]) -> list[int]:
    """Tokens whose next token is wanted: all rows, and the end of each own chunk; chunks are in their ``order``."""
    ends = np.cumsum([rows] + [len(chunk.ids) for chunk in chunks])[1:] - 1
    own = [int(end) for end, chunk in zip(ends, chunks, strict=True) if not chunk.shared]
    return [*range(rows), *own]


def order_of(chunks: list[PrefillChunk]) -> list[int]:
    """Which of the given own chunks each wanted token after the rows' belongs to, in the packed order."""
    indexed = sorted(range(len(chunks)), key=lambda at: chunks[at].order)
    return [at for at in indexed if not chunks[at].shared]
