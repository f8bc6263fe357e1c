"""Keys and values in slots: one tensor a layer, (slots, key/value heads, capacity, head size).

Our CPU kernels keep a slot's keys in blocks of ``BLOCK`` tokens, each (head size, ``BLOCK``): capacities are multiples
of it, and slots are copied by whole blocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK = 16  # LANES of kernels.c


@dataclass(frozen=True)
class KVShape:
    """What of a model decides the size of its keys and values."""

    layers: int
    heads: int
    head_size: int
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return 2 * self.layers * self.heads * self.head_size * self.dtype.itemsize


class KVStack:
    """Slots that each hold one prefix, one group's shared text or one sequence's own tokens."""

    def __init__(self, shape: KVShape, slots: int, capacity: int) -> None:
        self._shape = shape
        self.slots, self.capacity, self.heads = slots, capacity, shape.heads
        self.keys = [self._zeros() for _ in range(shape.layers)]
        self.values = [self._zeros() for _ in range(shape.layers)]

    def write(self, layer: int, slots: Tensor, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store tokens: ``keys``, ``values`` are (tokens, heads, head size), the index tensors (tokens,)."""
        self.keys[layer][slots, :, positions] = keys
        self.values[layer][slots, :, positions] = values

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a slot's first ``length`` tokens over another slot's."""
        whole = -(-length // BLOCK) * BLOCK
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :whole] = tensor[source, :, :whole]

    def resized(self, slots: int, capacity: int, keep: Iterable[int]) -> KVStack:
        """A stack of another size, the slots ``keep`` as they are as far as it has room for their tokens."""
        other = KVStack(self._shape, slots, capacity)
        kept, length = sorted(keep), min(capacity, self.capacity)
        for new, old in zip((*other.keys, *other.values), (*self.keys, *self.values), strict=True):
            new[kept, :, :length] = old[kept, :, :length]
        return other

    def _zeros(self) -> Tensor:
        # Zeros, because a masked place weighs 0 and 0 x NaN would be NaN.
        size = (self.slots, self._shape.heads, self.capacity, self._shape.head_size)
        if self._shape.device.type == "cpu":  # numpy's zeros take no memory before they are written to
            raw = np.zeros(size, np.int32 if self._shape.dtype.itemsize == 4 else np.int16)
            return torch.from_numpy(raw).view(self._shape.dtype)
        return torch.zeros(size, dtype=self._shape.dtype, device=self._shape.device)


@dataclass(frozen=True)
class Stacks:
    """Where keys and values live: images' prefixes, groups' shared texts, sequences' own tokens."""

    images: KVStack
    groups: KVStack
    own: KVStack

    def at(self, layer: int) -> tuple[list[Tensor], list[Tensor]]:
        """A layer's keys and values of images, groups and own."""
        stacks = (self.images, self.groups, self.own)
        return [stack.keys[layer] for stack in stacks], [stack.values[layer] for stack in stacks]
