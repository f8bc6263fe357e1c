"""How many slots of what length: from the memory allowed, and from what ran out of it before. No torch."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

ROUND = 64  # tokens: capacities are multiples of it, so that a slightly longer prompt needs no new memory
GROW_AFTER = 512  # good steps after running out of memory, before more is tried again
MOST_IMAGES = 64  # prefixes kept at most: images come one after another, few are ever in flight


@dataclass(frozen=True)
class Sizes:
    """What the stacks of keys and values measure."""

    images: int
    image_tokens: int
    groups: int
    group_tokens: int
    slots: int
    own_tokens: int


@dataclass
class MemoryPlanner:
    """Sizes within ``budget`` bytes, of which ``cache_bytes`` are for images' prefixes."""

    token_bytes: int
    budget: int
    cache_bytes: int
    most_slots: int
    prefill_tokens: int
    _now: Sizes | None = None
    _held: dict[int, int] = field(default_factory=dict)  # slots that held, by image tokens
    _good: int = 0

    def sizes(self, prefix: int, shared: int, own: int) -> Sizes | None:
        """Sizes with room for these token counts; None where the present ones have it and no more slots are
        due.
        """
        now = self._now or Sizes(0, 0, 0, 0, 0, 0)
        image_tokens = max(now.image_tokens, _rounded(prefix))
        group_tokens, own_tokens = max(now.group_tokens, _rounded(shared)), max(now.own_tokens, _rounded(own))
        images = min(MOST_IMAGES, max(1, self.cache_bytes // (image_tokens * self.token_bytes)))
        room = self.budget - images * image_tokens * self.token_bytes
        fit = room // ((own_tokens + group_tokens) * self.token_bytes)
        slots = max(1, min(self.most_slots, fit, self._held.get(image_tokens, self.most_slots)))
        wanted = Sizes(images, image_tokens, slots, group_tokens, slots, own_tokens)
        if wanted == self._now:
            return None
        self._now = wanted
        return wanted

    def shrink(self) -> bool:
        """After running out of memory: half the slots and half the cache. False where there is nothing to
        halve.
        """
        if self._now is None or (self._now.slots == 1 and self._now.images == 1):
            self._now = None
            return False
        slots = max(1, self._now.slots // 2)
        self._held[self._now.image_tokens] = slots
        self.cache_bytes //= 2
        self._good = 0
        log.warning("out of memory: settled on %d slots for images of %d tokens", slots, self._now.image_tokens)
        self._now = None
        return True

    def step_held(self) -> None:
        """A step went well; enough of them, and a number of slots that once was too many is tried again."""
        if self._now is None or self._now.image_tokens not in self._held:
            return
        self._good += 1
        if self._good >= GROW_AFTER:
            self._good = 0
            slots = min(self.most_slots, 2 * self._held[self._now.image_tokens])
            self._held[self._now.image_tokens] = slots
            self.cache_bytes *= 2
            log.info("memory held: up to %d slots again", slots)
            if slots == self.most_slots:
                del self._held[self._now.image_tokens]


def _rounded(tokens: int) -> int:
    return max(1, -(-tokens // ROUND)) * ROUND
