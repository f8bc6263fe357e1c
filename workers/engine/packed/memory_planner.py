"""How many slots of what length: from the memory allowed, and from what ran out of it before. No torch."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Protocol

from workers.engine.runner.step import KVCacheSizes

log = logging.getLogger(__name__)

ROUND = 64  # tokens: capacities are multiples of it, so that a slightly longer prompt needs no new memory
GROW_AFTER = 512  # steps in a row within memory, after which slots that did not fit are tried again
MAX_IMAGES = 64  # prefixes kept at most: images come one after another, few are ever in flight


class Planner(Protocol):
    """How large the KV cache is, and what running out of memory teaches."""

    prefill_tokens: int  # of one step, at most

    def sizes(self, image_tokens: int, group_tokens: int, sequence_tokens: int) -> KVCacheSizes | None:
        """Sizes with room for these token counts; None where the present ones have it and no more slots are due."""
        ...

    def shrink(self) -> bool:
        """After running out of memory: less from now on. False where it cannot be less."""
        ...

    def step_fitted(self) -> None:
        """Count a step that had memory enough; after enough of them, what did not fit is tried again."""
        ...


@dataclass
class PagedPlanner:
    """Blocks within ``budget`` bytes, allocated once: which prompts they hold decides who starts, not how large they
    are.
    """

    token_bytes: int
    budget: int
    max_slots: int
    prefill_tokens: int
    block_tokens: int
    _quarters: int = 4  # of the budget that are used
    _now: KVCacheSizes | None = None

    def sizes(self, image_tokens: int, group_tokens: int, sequence_tokens: int) -> KVCacheSizes | None:
        """As ``Planner.sizes`` says."""
        blocks = max(2, self.budget * self._quarters // 4 // (self.block_tokens * self.token_bytes))
        wanted = KVCacheSizes(MAX_IMAGES, 0, self.max_slots, 0, 0, blocks)
        if wanted == self._now:
            return None
        self._now = wanted
        return wanted

    def shrink(self) -> bool:
        """As ``Planner.shrink`` says: a quarter of the budget is left to activations."""
        if self._quarters == 1 or self._now is None:
            self._now = None
            return False
        self._now = None
        self._quarters -= 1
        log.warning("out of memory: %d/4 of the blocks from now on", self._quarters)
        return True

    def step_fitted(self) -> None:
        """As ``Planner.step_fitted`` says. What once did not fit beside the activations stays theirs: growing again
        would preempt all that runs.
        """


@dataclass
class MemoryPlanner:
    """Sizes of the KV cache within ``budget`` bytes, of which ``cache_bytes`` are for images' prefixes."""

    token_bytes: int
    budget: int
    cache_bytes: int
    max_slots: int
    prefill_tokens: int  # of one step, at most
    _sizes: KVCacheSizes | None = None
    _fitting: dict[int, int] = field(default_factory=dict)  # slots known to fit, by the images' tokens
    _steps_within: int = 0

    def sizes(self, image_tokens: int, group_tokens: int, sequence_tokens: int) -> KVCacheSizes | None:
        """Sizes with room for these token counts; None where the present ones have it and no more slots are due."""
        now = self._sizes or KVCacheSizes(0, 0, 0, 0, 0)
        image_tokens = max(now.image_tokens, _rounded(image_tokens))
        group_tokens = max(now.group_tokens, _rounded(group_tokens))
        sequence_tokens = max(now.sequence_tokens, _rounded(sequence_tokens))
        images = min(MAX_IMAGES, max(1, self.cache_bytes // (image_tokens * self.token_bytes)))
        room = self.budget - images * image_tokens * self.token_bytes
        fitting = room // ((sequence_tokens + group_tokens) * self.token_bytes)
        slots = max(1, min(self.max_slots, fitting, self._fitting.get(image_tokens, self.max_slots)))
        wanted = KVCacheSizes(images, image_tokens, slots, group_tokens, sequence_tokens)
        if wanted == self._sizes:
            return None
        self._sizes = wanted
        return wanted

    def shrink(self) -> bool:
        """After running out of memory: half the slots and half the cache. False where there is nothing to halve."""
        sizes, self._sizes = self._sizes, None
        if sizes is None or (sizes.slots == 1 and sizes.images == 1):
            return False
        slots = max(1, sizes.slots // 2)
        self._fitting[sizes.image_tokens] = slots
        self.cache_bytes //= 2
        self._steps_within = 0
        log.warning("out of memory: %d slots from now on for images of %d tokens", slots, sizes.image_tokens)
        return True

    def step_fitted(self) -> None:
        """Count a step that had memory enough; after enough of them, slots that did not fit are tried again."""
        if self._sizes is None or self._sizes.image_tokens not in self._fitting:
            return
        self._steps_within += 1
        if self._steps_within >= GROW_AFTER:
            self._steps_within = 0
            slots = min(self.max_slots, 2 * self._fitting[self._sizes.image_tokens])
            self._fitting[self._sizes.image_tokens] = slots
            self.cache_bytes *= 2
            log.info("memory has been enough: up to %d slots again", slots)
            if slots == self.max_slots:
                del self._fitting[self._sizes.image_tokens]


def _rounded(tokens: int) -> int:
    return max(1, -(-tokens // ROUND)) * ROUND
