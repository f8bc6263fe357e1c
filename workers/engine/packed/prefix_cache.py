"""Which images' prefixes are kept on the device, and in which slot: least recently used, bounded, no torch.

A slot that a running sequence reads is never given to another image.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass


@dataclass
class CachedPrefix:
    """An image's prefix: where its keys and values are and what follows from it."""

    slot: int
    tokens: int  # length of the prefix
    visual: int  # how many of its tokens are the image
    next_position: int  # rotary position of the first token after it


class PrefixCache:
    """Slots 0 .. ``slots`` - 1 by image key."""

    def __init__(self, slots: int) -> None:
        self._free = list(range(slots - 1, -1, -1))
        self._entries: OrderedDict[str, CachedPrefix] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def use(self, key: str) -> CachedPrefix:
        """The entry of a key that is cached."""
        self._entries.move_to_end(key)
        return self._entries[key]

    def slots(self) -> set[int]:
        """The slots that hold a prefix."""
        return {entry.slot for entry in self._entries.values()}

    def reserve(self, read: Container[str]) -> int | None:
        """A slot to fill: a free one, else that of the least recently used entry that is not ``read``, else
        None.
        """
        if self._free:
            return self._free.pop()
        for key, entry in self._entries.items():
            if key not in read:
                del self._entries[key]
                return entry.slot
        return None

    def release(self, slot: int) -> None:
        """Give back a reserved slot that could not be filled."""
        self._free.append(slot)

    def fill(self, key: str, entry: CachedPrefix) -> None:
        """Remember what a reserved slot now holds."""
        self._entries[key] = entry

    def grow(self, slots: int) -> None:
        """Add slots up to ``slots`` in all."""
        known = len(self._free) + len(self._entries)
        self._free = list(range(slots - 1, known - 1, -1)) + self._free

    def reset(self, slots: int) -> None:
        """Forget everything, and begin again with so many slots."""
        self._free = list(range(slots - 1, -1, -1))
        self._entries.clear()
