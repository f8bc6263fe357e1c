"""Which images' prefixes are kept on the device, and in which slot: least recently used, bounded, no torch.

A slot that a running sequence reads is never given to another image.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass, field

from workers.engine.packed.block_pool import BlockPool
from workers.engine.runner.step import Blocks, no_blocks


@dataclass(frozen=True)
class CachedPrefix:
    """An image's prefix: where its keys and values are and what follows from it."""

    slot: int
    num_tokens: int  # of the prefix
    num_visual_tokens: int  # how many of these are the image
    next_position: int  # rotary position of the first token after it
    blocks: Blocks = field(default_factory=no_blocks, compare=False)  # of a paged KV cache


class PrefixCache:
    """Slots 0 .. n - 1 by image key."""

    def __init__(self, slots: int = 0, pool: BlockPool | None = None) -> None:
        self.pool = pool or BlockPool()
        self._free = list(range(slots - 1, -1, -1))
        self._entries: OrderedDict[str, CachedPrefix] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_slots(self) -> int:
        """Slots in all, while none is reserved."""
        return len(self._free) + len(self._entries)

    def use(self, key: str) -> CachedPrefix:
        """The entry of a key that is cached."""
        self._entries.move_to_end(key)
        return self._entries[key]

    def filled_slots(self) -> set[int]:
        """The slots that hold a prefix."""
        return {entry.slot for entry in self._entries.values()}

    def reserve(self, in_use: Container[str], num_tokens: int = 0) -> tuple[int, Blocks] | None:
        """A slot to fill and blocks for so many tokens, those of the least recently used entries that are not
        ``in_use`` if need be; else None.
        """
        while not self._free or self.pool.num_free < self.pool.blocks_for(num_tokens):
            if not self.evict(in_use):
                return None
        blocks = self.pool.allocate(num_tokens)
        assert blocks is not None
        return self._free.pop(), blocks

    def evict(self, in_use: Container[str]) -> bool:
        """Forget the least recently used entry that is not ``in_use``, if there is one."""
        for key, entry in self._entries.items():
            if key not in in_use:
                del self._entries[key]
                self.release(entry.slot, entry.blocks)
                return True
        return False

    def release(self, slot: int, blocks: Blocks | None = None) -> None:
        """Give back what was reserved and could not be filled."""
        self._free.append(slot)
        if blocks is not None:
            self.pool.free(blocks)

    def fill(self, key: str, entry: CachedPrefix) -> None:
        """Remember what a reserved slot now holds."""
        self._entries[key] = entry

    def grow(self, slots: int) -> None:
        """Add slots up to ``slots`` in all."""
        self._free = list(range(slots - 1, self.num_slots - 1, -1)) + self._free

    def clear(self) -> None:
        """Forget everything, slots included."""
        for entry in self._entries.values():
            self.pool.free(entry.blocks)
        self._free.clear()
        self._entries.clear()
