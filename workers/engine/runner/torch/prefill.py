"""The part of a packed step that prefills: chunks of prompts, each after the spans that it follows."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from workers.engine.runner.kv_cache import KVCache
from workers.engine.runner.step import KVSpan, PrefillChunk
from workers.engine.runner.torch.attention import attend_causal, attend_shared, merge, store


@dataclass
class PrefillMetadata:
    """Chunks of prompts one after another; tokens are counted from the first chunk's."""

    padded: Tensor  # (chunks, longest) tokens by chunk, the last one repeated
    unpad: Tensor  # (tokens,) where in ``padded`` a token is
    seen: list[tuple[bool, KVSpan, int, int]] = field(default_factory=list)  # (of a group?, span, from, to)
    writes: list[tuple[bool, Tensor, Tensor, Tensor]] = field(default_factory=list)  # (shared?, tokens, slots, offsets)

    def attend(self, kv_cache: KVCache, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(tokens, heads, size): each chunk causally, then every span that a range of tokens sees."""
        for shared, tokens, slots, offsets in self.writes:
            stack = kv_cache.groups if shared else kv_cache.sequences
            store(stack.keys[layer], stack.values[layer], (slots, offsets), key[tokens], value[tokens])
        out, lse = attend_causal(query[self.padded], key[self.padded], value[self.padded])
        out, lse = out[self.unpad], lse[self.unpad]
        for of_group, span, start, end in self.seen:
            stack = kv_cache.groups if of_group else kv_cache.images
            keys = stack.keys[layer][span.slot, :, : span.length]
            values = stack.values[layer][span.slot, :, : span.length]
            part = attend_shared(query[start:end], keys, values)
            before = (out[start:end], lse[start:end])
            out[start:end] = merge([before, part])
            lse[start:end] = torch.logaddexp(before[1], part[1])
        return out


def prefill_metadata(chunks: list[PrefillChunk], device: torch.device) -> PrefillMetadata:
    """Lay out chunks that are in their ``order``."""
    lengths = np.array([len(chunk.token_ids) for chunk in chunks])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    longest = int(lengths.max())
    offsets = np.arange(longest)
    padded = starts[:, None] + np.minimum(offsets, lengths[:, None] - 1)
    unpad = np.concatenate([index * longest + np.arange(length) for index, length in enumerate(lengths)])
    made = PrefillMetadata(torch.from_numpy(padded).to(device), torch.from_numpy(unpad).to(device))
    for of_group in (False, True):
        made.seen += [(of_group, *run) for run in _runs(chunks, starts, lengths, of_group)]
    for shared in (False, True):
        chosen = [index for index, chunk in enumerate(chunks) if chunk.shared == shared]
        if chosen:
            tokens = np.concatenate([starts[index] + np.arange(lengths[index]) for index in chosen])
            slots = np.concatenate([np.full(lengths[index], chunks[index].slot) for index in chosen])
            offsets = np.concatenate([np.arange(lengths[index]) for index in chosen])
            where = [torch.from_numpy(array).to(device) for array in (tokens, slots, offsets)]
            made.writes.append((shared, where[0], where[1], where[2]))
    return made


def _runs(
    chunks: list[PrefillChunk], starts: np.ndarray, lengths: np.ndarray, of_group: bool
) -> list[tuple[KVSpan, int, int]]:
    """Ranges of tokens whose chunks follow the same span."""
    runs: list[tuple[KVSpan, int, int]] = []
    for chunk, start, length in zip(chunks, starts, lengths, strict=True):
        span = chunk.group if of_group else chunk.image
        if span is None:
            continue
        end = int(start + length)
        if runs and runs[-1][0] == span and runs[-1][2] == start:
            runs[-1] = (span, runs[-1][1], end)
        else:
            runs.append((span, int(start), end))
    return runs
