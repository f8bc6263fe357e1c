"""Which images' prefixes are kept on the device, and in which slot: least recently used, bounded, no torch.

A slot that a running sequence reads is never given to another image.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass


@dataclass(frozen=True)
class CachedPrefix:
    """An image's prefix: where its keys and values are and what follows from it."""

    slot: int
    num_tokens: int  # of the prefix
    num_visual_tokens: int  # how many of these are the image
    next_position: int  # rotary position of the first token after it


class PrefixCache:
    """Slots 0 .. n - 1 by image key."""

    def __init__(self, slots: int = 0) -> None:
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

    def reserve(self, in_use: Container[str]) -> int | None:
        """A slot to fill: a free one, else that of the least recently used entry that is not ``in_use``, else None."""
        if self._free:
            return self._free.pop()
        for key, entry in self._entries.items():
            if key not in in_use:
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
        self._free = list(range(slots - 1, self.num_slots - 1, -1)) + self._free

    def clear(self) -> None:
        """Forget everything, slots included."""
        self._free.clear()
        self._entries.clear()
