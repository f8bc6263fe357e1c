"""The part of a packed step that prefills: chunks of prompts, each after the prefixes that it follows."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from workers.engine.runner.kv_cache import Stacks
from workers.engine.runner.step import KVSpan, PrefillChunk
from workers.engine.runner.torch.attention import attend_causal, attend_shared, merge


@dataclass
class PrefillPart:
    """Pieces of prompts one after another; tokens are counted from the first chunk's."""

    padded: Tensor  # (chunks, longest) tokens by chunk, the last one repeated
    unpad: Tensor  # (tokens,) where in ``padded`` a token is
    seen: list[tuple[bool, KVSpan, int, int]] = field(default_factory=list)  # (of a group?, prefix, from, to)
    writes: list[tuple[bool, Tensor, Tensor, Tensor]] = field(default_factory=list)  # (shared?, tokens, slots, places)

    def attend(self, stacks: Stacks, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(tokens, heads, size): each chunk causally, then every prefix that a range of tokens sees."""
        for shared, tokens, slots, places in self.writes:
            stack = stacks.groups if shared else stacks.own
            stack.write(layer, slots, places, key[tokens], value[tokens])
        out, lse = attend_causal(query[self.padded], key[self.padded], value[self.padded])
        out, lse = out[self.unpad], lse[self.unpad]
        for of_group, prefix, start, end in self.seen:
            stack = stacks.groups if of_group else stacks.images
            keys = stack.keys[layer][prefix.slot, :, : prefix.length]
            values = stack.values[layer][prefix.slot, :, : prefix.length]
            part = attend_shared(query[start:end], keys, values)
            before = (out[start:end], lse[start:end])
            out[start:end] = merge([before, part])
            lse[start:end] = torch.logaddexp(before[1], part[1])
        return out


def prefill_part(chunks: list[PrefillChunk], device: torch.device) -> PrefillPart:
    """Lay out chunks that are in their ``order``."""
    lengths = np.array([len(chunk.ids) for chunk in chunks])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    longest = int(lengths.max())
    places = np.arange(longest)
    padded = starts[:, None] + np.minimum(places, lengths[:, None] - 1)
    unpad = np.concatenate([index * longest + np.arange(length) for index, length in enumerate(lengths)])
    part = PrefillPart(torch.from_numpy(padded).to(device), torch.from_numpy(unpad).to(device))
    for of_group in (False, True):
        part.seen += [(of_group, *run) for run in _runs(chunks, starts, lengths, of_group)]
    for shared in (False, True):
        chosen = [index for index, chunk in enumerate(chunks) if chunk.shared == shared]
        if chosen:
            tokens = np.concatenate([starts[index] + np.arange(lengths[index]) for index in chosen])
            slots = np.concatenate([np.full(lengths[index], chunks[index].target) for index in chosen])
            places = np.concatenate([np.arange(lengths[index]) for index in chosen])
            where = [torch.from_numpy(array).to(device) for array in (tokens, slots, places)]
            part.writes.append((shared, where[0], where[1], where[2]))
    return part


def _runs(
    chunks: list[PrefillChunk], starts: np.ndarray, lengths: np.ndarray, of_group: bool
) -> list[tuple[KVSpan, int, int]]:
    """Ranges of tokens whose chunks follow the same prefix."""
    runs: list[tuple[KVSpan, int, int]] = []
    for chunk, start, length in zip(chunks, starts, lengths, strict=True):
        prefix = chunk.group if of_group else chunk.image
        if prefix is None:
            continue
        end = int(start + length)
        if runs and runs[-1][0] == prefix and runs[-1][2] == start:
            runs[-1] = (prefix, runs[-1][1], end)
        else:
            runs.append((prefix, int(start), end))
    return runs
