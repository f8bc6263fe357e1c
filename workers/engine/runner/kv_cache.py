"""The KV cache: slots of three levels, one tensor a layer and level, (slots, key/value heads, capacity, head size).

How a slot's keys lie within it is its backend's own affair: slots are only moved and kept here, by whole blocks of
tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from workers.engine.runner.step import KVCacheSizes, KVCacheSlots


@dataclass(frozen=True)
class KVShape:
    """What of a model decides the size of its keys and values."""

    layers: int
    heads: int
    head_size: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, model: Any) -> KVShape:
        """That of a transformers model's language model."""
        return cls.of_config(model.config, model.dtype, model.device)

    @classmethod
    def of_config(cls, config: Any, dtype: torch.dtype, device: torch.device | None = None) -> KVShape:
        """That of a model's configuration."""
        text = config.get_text_config()
        head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return cls(text.num_hidden_layers, text.num_key_value_heads, head_size, dtype, device or torch.device("cpu"))

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return 2 * self.layers * self.heads * self.head_size * self.dtype.itemsize


class Cache(Protocol):
    """A model's keys and values, laid out as its backend likes."""

    shape: KVShape

    def move(self, source: int, target: int, length: int) -> None:
        """A sequence's first ``length`` tokens go into another slot."""
        ...

    def wipe(self) -> None:
        """Zeros everywhere, in the same memory on a GPU, for captured steps refer to it."""
        ...


class KVStack:
    """Slots that each hold one image's prefix, one group's shared prefix or one sequence's own tokens."""

    def __init__(self, shape: KVShape, slots: int = 0, capacity: int = 0) -> None:
        self._shape = shape
        self.slots, self.capacity, self.heads = slots, capacity, shape.heads
        self.keys = [self._zeros() for _ in range(shape.layers)]
        self.values = [self._zeros() for _ in range(shape.layers)]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a slot's first ``length`` tokens over another slot's."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :length] = tensor[source, :, :length]

    def wipe(self) -> None:
        """Zeros everywhere; on a CPU in new memory, which is taken only as it is used."""
        if self._shape.device.type == "cpu":
            self.keys, self.values = ([self._zeros() for _ in layers] for layers in (self.keys, self.values))
            return
        for tensor in (*self.keys, *self.values):
            tensor.zero_()

    def resized(self, slots: int, capacity: int, keep: Iterable[int]) -> KVStack:
        """A stack of another size, the slots ``keep`` as they are as far as it has room for their tokens."""
        if (slots, capacity) == (self.slots, self.capacity):
            return self
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


class KVCache:
    """The keys and values of images' prefixes, of groups' shared prefixes and of sequences' own tokens."""

    def __init__(self, shape: KVShape, *, block: int = 1) -> None:
        """``block``: tokens whose keys the backend keeps together; capacities must be multiples of it."""
        self.shape, self._block = shape, block
        self.images, self.groups, self.sequences = (KVStack(shape) for _ in range(3))

    def resize(self, sizes: KVCacheSizes, keep: KVCacheSlots) -> None:
        """Change the sizes; the slots ``keep`` hold what they held. Raises what running out of memory raises."""
        self.images = self.images.resized(sizes.images, sizes.image_tokens, keep.images)
        self.groups = self.groups.resized(sizes.slots, sizes.group_tokens, keep.groups)
        self.sequences = self.sequences.resized(sizes.slots, sizes.sequence_tokens, keep.sequences)

    def release(self) -> None:
        """Let all memory go."""
        self.images, self.groups, self.sequences = (KVStack(self.shape) for _ in range(3))
        if self.shape.device.type == "cuda":
            torch.cuda.empty_cache()

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a sequence's first ``length`` tokens over another slot's."""
        self.sequences.move(source, target, -(-length // self._block) * self._block)

    def wipe(self) -> None:
        """As ``Cache.wipe`` says."""
        for stack in (self.images, self.groups, self.sequences):
            stack.wipe()

    def layer(self, layer: int) -> tuple[list[Tensor], list[Tensor]]:
        """A layer's keys and values of images, groups and sequences."""
        stacks = (self.images, self.groups, self.sequences)
        return [stack.keys[layer] for stack in stacks], [stack.values[layer] for stack in stacks]
