"""Blocks of a paged KV cache: who holds which. No torch.

A block holds a few tokens' keys and values of all layers, and belongs to one image's prefix, one group's shared
prefix or one sequence. What is allocated covers all that its owner may ever need, so nothing grows while it runs, and
nothing that runs has to give way. Block 0 belongs to nobody: rows that fill up a fixed shape write there.
"""

from __future__ import annotations

import numpy as np

from workers.engine.runner.step import Blocks, no_blocks


class BlockPool:
    """Blocks 1 .. n; of a KV cache without blocks (``block_tokens`` 0) everything is granted, as no blocks."""

    def __init__(self, block_tokens: int = 0) -> None:
        self.block_tokens = block_tokens
        self.resize(0)

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def resize(self, blocks: int) -> None:
        """Begin anew with so many blocks, the one that belongs to nobody included; nobody may hold any."""
        self.total = max(0, blocks - 1)
        self._free = list(range(self.total, 0, -1))

    def blocks_for(self, tokens: int) -> int:
        """How many blocks these tokens take."""
        return -(-tokens // self.block_tokens) if self.block_tokens else 0

    def allocate(self, tokens: int) -> Blocks | None:
        """Blocks for these tokens; None where there are not enough."""
        count = self.blocks_for(tokens)
        if count > len(self._free):
            return None
        if count == 0:
            return no_blocks()
        taken = self._free[-count:]
        del self._free[-count:]
        return np.array(taken[::-1], dtype=np.int32)

    def free(self, blocks: Blocks) -> None:
        """Take blocks back."""
        self._free += blocks[::-1].tolist()
