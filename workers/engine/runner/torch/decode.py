"""The part of a packed step that decodes: rows that see an image, a shared prefix and their own tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workers.engine.runner.kv_cache import KVCache, KVStack
from workers.engine.runner.step import DecodeToken, KVSpan
from workers.engine.runner.torch.attention import (
    HIDDEN,
    Part,
    attend_shared,
    attend_stacked,
    merge,
    stacked_mask,
    store,
)

ROWS = (8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # of fixed shapes
SLOTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # of fixed shapes' levels
SEQUENCE, PREFIX = 128, 64  # tokens: lengths of fixed shapes are multiples of these


@dataclass(frozen=True)
class FixedShape:
    """What a step's tensors measure when they must not follow the rows: replayed graphs have fixed shapes."""

    rows: int
    length: int  # tokens of a row's own
    groups: tuple[int, int, int]  # slots, most rows a slot, tokens a slot
    images: tuple[int, int, int]


@dataclass
class Level:
    """Rows that see some slots of a stack: grouped by slot, and padded to the widest group."""

    slots: Tensor | None  # (slots,) which; None where they are the first ones, which need not be gathered
    grouped: Tensor  # (slots * width,) rows, padded with row 0
    mask: Tensor  # of the slots' tokens, as ``attend_stacked`` wants it
    ungroup: Tensor  # (rows,) where in ``grouped`` a row is
    absent: Tensor  # (rows,) added to the log-sum-exp: hides the level from rows that see none

    def tensors(self) -> Iterator[Tensor]:
        """All that it consists of."""
        if self.slots is not None:
            yield self.slots
        yield from (self.grouped, self.mask, self.ungroup, self.absent)

    def attend(self, stack: KVStack, layer: int, query: Tensor) -> Part:
        """(rows, heads, size) and (rows, heads)."""
        slots, length = self.mask.shape[0] // stack.heads, self.mask.shape[2]
        keys, values = stack.keys[layer][:, :, :length], stack.values[layer][:, :, :length]
        if self.slots is None:
            keys, values = keys[:slots], values[:slots]
        else:
            keys, values = keys.index_select(0, self.slots), values.index_select(0, self.slots)
        by_slot = query[self.grouped].view(slots, -1, *query.shape[1:])
        out, lse = attend_stacked(by_slot, keys, values, self.mask)
        return out[self.ungroup], lse[self.ungroup] + self.absent[:, None]


@dataclass
class Images:
    """Each image's prefix in turn, as long as it is: better than a ``Level`` where shapes may vary."""

    seen: list[tuple[KVSpan, Tensor]]  # a span, and the rows that see it
    order: Tensor  # (rows,) where in all of ``seen`` a row is

    def attend(self, stack: KVStack, layer: int, query: Tensor) -> Part:
        """(rows, heads, size) and (rows, heads)."""
        if len(self.seen) == 1:
            return _attend_span(stack, layer, query, self.seen[0][0])
        parts = [_attend_span(stack, layer, query[rows], span) for span, rows in self.seen]
        out, lse = (torch.cat(each) for each in zip(*parts, strict=True))
        return out[self.order], lse[self.order]


@dataclass
class DecodeMetadata:
    """Rows 0 .. n-1, in slots 0 .. n-1 of the sequences."""

    slots: Tensor  # (rows,) 0 .. rows - 1
    offsets: Tensor  # (rows,) where in its slot the new token goes
    mask: Tensor  # of a row's own tokens, as ``attend_stacked`` wants it
    groups: Level | None
    images: Level | Images

    @property
    def rows(self) -> int:
        """How many tokens this part of the step has."""
        return len(self.slots)

    def tensors(self) -> Iterator[Tensor]:
        """All that a part of a fixed shape consists of."""
        yield from (self.slots, self.offsets, self.mask)
        for level in (self.groups, self.images):
            if isinstance(level, Level):
                yield from level.tensors()

    def attend(self, kv_cache: KVCache, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(rows, heads, size) from the three levels."""
        stack, rows, length = kv_cache.sequences, self.rows, self.mask.shape[2]
        store(stack.keys[layer], stack.values[layer], (self.slots, self.offsets), key, value)
        keys, values = stack.keys[layer][:rows, :, :length], stack.values[layer][:rows, :, :length]
        parts = [attend_stacked(query[:, None], keys, values, self.mask)]
        if self.groups is not None:
            parts.append(self.groups.attend(kv_cache.groups, layer, query))
        parts.append(self.images.attend(kv_cache.images, layer, query))
        return merge(parts)


def decode_metadata(
    decode: Sequence[DecodeToken], kv_heads: int, device: torch.device, shape: FixedShape | None = None
) -> DecodeMetadata:
    """Lay out rows; with a fixed ``shape`` there must be as many as it says."""
    offsets = np.array([token.offset for token in decode])
    groups, images = [token.group for token in decode], [token.image for token in decode]
    length = shape.length if shape else int(offsets.max()) + 1
    return DecodeMetadata(
        slots=torch.arange(len(decode), device=device),
        offsets=torch.from_numpy(offsets).to(device),
        mask=stacked_mask(torch.from_numpy(offsets + 1).to(device), length, kv_heads),
        groups=make_level(groups, kv_heads, device, shape.groups if shape else None),
        images=_fixed_images(images, kv_heads, device, shape) if shape else _images(images, device),
    )


def fixed_shape(decode: Sequence[DecodeToken], kv_cache: KVCache) -> FixedShape:
    """The smallest shape of the grid that the tokens fit."""
    rows = min(_up(len(decode), ROWS), kv_cache.sequences.slots)
    longest = max(token.offset for token in decode) + 1
    return FixedShape(
        rows=rows,
        length=min(_multiple(longest, SEQUENCE), kv_cache.sequences.capacity),
        groups=_fixed_extent(extent([token.group for token in decode]), rows, kv_cache.groups),
        images=_fixed_extent(extent([token.image for token in decode]), rows, kv_cache.images),
    )


def _fixed_extent(exact: tuple[int, int, int], rows: int, stack: KVStack) -> tuple[int, int, int]:
    slots, width, length = exact
    if slots == 0:
        return 0, 0, 0
    return _up(slots, SLOTS), min(_power(width), rows), min(_multiple(length, PREFIX), stack.capacity)


def _up(value: int, grid: tuple[int, ...]) -> int:
    return next((step for step in grid if step >= value), value)


def _power(value: int) -> int:
    return 1 << (value - 1).bit_length()


def _multiple(value: int, of: int) -> int:
    return -(-value // of) * of


def extent(spans: Sequence[KVSpan | None]) -> tuple[int, int, int]:
    """Slots seen, most rows a slot and most tokens a slot of a level over these spans; zeros where there are none."""
    seen = [span for span in spans if span is not None]
    if not seen:
        return 0, 0, 0
    crowds = np.unique([span.slot for span in seen], return_counts=True)[1]
    return len(crowds), int(crowds.max()), max(span.length for span in seen)


def make_level(
    spans: Sequence[KVSpan | None],
    kv_heads: int,
    device: torch.device,
    fixed: tuple[int, int, int] | None = None,
) -> Level | None:
    """Lay out what each row sees of a stack; None where no row sees any of it."""
    slots, width, longest = fixed or extent(spans)
    if slots == 0:
        return None
    used = sorted({span.slot for span in spans if span is not None})
    number = {slot: at for at, slot in enumerate(used)}
    grouped, lengths = np.zeros((slots, width), dtype=np.int64), np.zeros(slots, dtype=np.int64)
    ungroup, taken = np.zeros(len(spans), dtype=np.int64), [0] * slots
    for row, span in enumerate(spans):
        if span is not None:
            at = number[span.slot]
            grouped[at, taken[at]] = row
            ungroup[row] = at * width + taken[at]
            taken[at] += 1
            lengths[at] = span.length
    gathered = fixed is not None or used != list(range(slots))
    absent = [HIDDEN if span is None else 0.0 for span in spans]
    return Level(
        slots=torch.tensor(used + [0] * (slots - len(used)), device=device) if gathered else None,
        grouped=torch.from_numpy(grouped.reshape(-1)).to(device),
        mask=stacked_mask(torch.from_numpy(lengths).to(device), longest, kv_heads),
        ungroup=torch.from_numpy(ungroup).to(device),
        absent=torch.tensor(absent, device=device),
    )


def _fixed_images(spans: Sequence[KVSpan | None], kv_heads: int, device: torch.device, shape: FixedShape) -> Level:
    made = make_level(spans, kv_heads, device, shape.images)
    if made is None:
        raise ValueError("a fixed shape without images")
    return made


def _images(spans: Sequence[KVSpan | None], device: torch.device) -> Images:
    members: dict[KVSpan, list[int]] = {}
    for row, span in enumerate(spans):
        if span is not None:
            members.setdefault(span, []).append(row)
    order = np.argsort(np.concatenate(list(members.values())))
    seen = [(span, torch.tensor(rows, device=device)) for span, rows in members.items()]
    return Images(seen, torch.from_numpy(order).to(device))


def _attend_span(stack: KVStack, layer: int, query: Tensor, span: KVSpan) -> Part:
    keys = stack.keys[layer][span.slot, :, : span.length]
    values = stack.values[layer][span.slot, :, : span.length]
    return attend_shared(query, keys, values)
