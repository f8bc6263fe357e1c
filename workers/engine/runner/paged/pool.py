"""The paged KV cache: one pool of blocks, allocated once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from workers.engine.runner.kv_cache import KVShape
from workers.engine.runner.paged.tasks import BLOCK


class PagedKVCache:
    """A layer's keys, and its values, are (blocks, key/value heads, ``BLOCK``, head size); block 0 is nobody's."""

    def __init__(self, shape: KVShape) -> None:
        self.shape = shape
        self.blocks = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def resize(self, blocks: int) -> None:
        """Have so many blocks, empty; the old ones are let go first. Raises what running out of memory raises."""
        self.release()
        for layers in (self.keys, self.values):
            layers += [self._zeros(blocks) for _ in range(self.shape.layers)]
        self.blocks = blocks

    def release(self) -> None:
        """Let all memory go."""
        self.keys, self.values, self.blocks = [], [], 0
        if self.shape.device.type == "cuda":
            torch.cuda.empty_cache()

    def move(self, source: int, target: int, length: int) -> None:
        """Nothing: a sequence's blocks go with it into another slot."""

    def wipe(self) -> None:
        """As ``Cache.wipe`` says."""
        for layers in (self.keys, self.values):
            for at, tensor in enumerate(layers):
                if tensor.device.type == "cpu":  # new memory, which is taken only as it is used
                    layers[at] = self._zeros(self.blocks)
                else:
                    tensor.zero_()

    def _zeros(self, blocks: int) -> Tensor:
        size = (blocks, self.shape.heads, BLOCK, self.shape.head_size)
        if self.shape.device.type == "cpu":  # numpy's zeros take no memory before they are written to
            raw = np.zeros(size, np.int32 if self.shape.dtype.itemsize == 4 else np.int16)
            return torch.from_numpy(raw).view(self.shape.dtype)
        return torch.zeros(size, dtype=self.shape.dtype, device=self.shape.device)
