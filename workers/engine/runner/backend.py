"""The interface between the runner and a backend: how a step's attention is computed, and over which KV cache.

A backend is installed into one model. It lays a step out as a ``Batch``, which the model's attention layers get back as
the keyword ``attn_metadata``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from workers.engine.runner.kv_cache import Cache
from workers.engine.runner.step import DecodeToken, KVCacheSizes, KVCacheSlots, KVSpan, PrefillChunk


class Batch(Protocol):
    """A step as the model takes it, on the model's device."""

    @property
    def token_ids(self) -> Tensor:
        """(tokens,)."""
        ...

    @property
    def positions(self) -> Tensor:
        """(tokens,), rotary."""
        ...

    @property
    def logits_indices(self) -> Tensor | None:
        """(rows,): the tokens to sample after; None: all."""
        ...


Forward = Callable[[Any], Tensor]
"""From a backend's ``Batch`` to its logits (rows, vocabulary)."""


class Backend(Protocol):
    """One way to compute the attention of packed steps. The layout of its KV cache is its own."""

    block_tokens: int  # that a block of its paged KV cache holds; 0 where it has slots of fixed capacity

    def install(self, model: Any) -> Cache:
        """Put what the backend needs into a transformers model, in place; gives the model's KV cache, still empty."""
        ...

    def compile(self, forward: Forward) -> Forward:
        """``forward``, or something faster that gives the same."""
        ...

    def prepare_step(self, decode: Sequence[DecodeToken], prefill: Sequence[PrefillChunk]) -> Batch:
        """Lay out a step; the rows of its logits are the ``decode`` tokens and then the chunks to sample after, as
        they are given.
        """
        ...

    def prepare_prefix(self, span: KVSpan) -> Any:
        """The ``attn_metadata`` of an image's prefix by itself: causal, its keys and values stored in ``span``."""
        ...

    def resize(self, sizes: KVCacheSizes, keep: KVCacheSlots) -> None:
        """Give the KV cache other sizes, with what the slots ``keep`` hold."""
        ...

    def choose(self, logits: Tensor, temperatures: Tensor, numbers: Tensor) -> Tensor:
        """The next token of each row, as ``sampling.choose`` says."""
        ...

    def stats(self) -> dict[str, float]:
        """Counters since the start: steps ``replayed``, graphs ``captured``; empty where there are none."""
        ...

    def release(self) -> None:
        """Let the KV cache's memory go, and all that refers to it."""
        ...
