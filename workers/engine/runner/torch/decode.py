"""The part of a packed step that decodes: rows that see an image, a shared text and their own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workers.engine.runner.kv_cache import KVStack, Stacks
from workers.engine.runner.step import DecodeToken, KVSpan
from workers.engine.runner.torch.attention import HIDDEN, Part, attend_shared, attend_stacked, merge, stacked_mask


@dataclass(frozen=True)
class FixedShape:
    """What a step's tensors measure when they must not follow the rows: replayed graphs have fixed shapes."""

    rows: int
    own: int  # tokens of a row's own
    groups: tuple[int, int, int]  # slots, most rows a slot, tokens a slot
    images: tuple[int, int, int]


@dataclass
class Level:
    """Rows that see slots 0 .. n-1 of a stack: grouped by slot, and padded to the widest group."""

    grouped: Tensor  # (slots * width,) rows, padded with row 0
    mask: Tensor  # of the slots' tokens, as ``attend_stacked`` wants it
    ungroup: Tensor  # (rows,) where in ``grouped`` a row is
    absent: Tensor  # (rows,) added to the log-sum-exp: hides the level from rows that see none

    def attend(self, stack: KVStack, layer: int, query: Tensor) -> Part:
        """(rows, heads, size) and (rows, heads)."""
        slots, length = self.mask.shape[0] // stack.heads, self.mask.shape[2]
        keys, values = stack.keys[layer][:slots, :, :length], stack.values[layer][:slots, :, :length]
        by_slot = query[self.grouped].view(slots, -1, *query.shape[1:])
        out, lse = attend_stacked(by_slot, keys, values, self.mask)
        return out[self.ungroup], lse[self.ungroup] + self.absent[:, None]


@dataclass
class Images:
    """Each image's prefix in turn, as long as it is: better than a ``Level`` where shapes may vary."""

    seen: list[tuple[KVSpan, Tensor]]  # a prefix, and the rows that see it
    order: Tensor  # (rows,) where in all of ``seen`` a row is

    def attend(self, stack: KVStack, layer: int, query: Tensor) -> Part:
        """(rows, heads, size) and (rows, heads)."""
        if len(self.seen) == 1:
            return _attend_prefix(stack, layer, query, self.seen[0][0])
        parts = [_attend_prefix(stack, layer, query[rows], prefix) for prefix, rows in self.seen]
        out, lse = (torch.cat(each) for each in zip(*parts, strict=True))
        return out[self.order], lse[self.order]


@dataclass
class DecodePart:
    """Rows 0 .. n-1, in slots 0 .. n-1 of the own stack."""

    slots: Tensor  # (rows,) 0 .. rows - 1
    at: Tensor  # (rows,) where the new token goes
    mask: Tensor  # of a row's own tokens, as ``attend_stacked`` wants it
    groups: Level | None
    images: Level | Images

    @property
    def rows(self) -> int:
        """How many tokens this part of the step has."""
        return len(self.slots)

    def attend(self, stacks: Stacks, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(rows, heads, size) from the three levels."""
        own, rows, length = stacks.own, self.rows, self.mask.shape[2]
        own.write(layer, self.slots, self.at, key, value)
        keys, values = own.keys[layer][:rows, :, :length], own.values[layer][:rows, :, :length]
        parts = [attend_stacked(query[:, None], keys, values, self.mask)]
        if self.groups is not None:
            parts.append(self.groups.attend(stacks.groups, layer, query))
        parts.append(self.images.attend(stacks.images, layer, query))
        return merge(parts)


def decode_part(
    rows: Sequence[DecodeToken], kv_heads: int, device: torch.device, fixed: FixedShape | None = None
) -> DecodePart:
    """Lay out rows; with a ``fixed`` shape there must be as many as it says."""
    at = np.array([row.at for row in rows])
    groups, images = [row.group for row in rows], [row.image for row in rows]
    own = fixed.own if fixed else int(at.max()) + 1
    return DecodePart(
        slots=torch.arange(len(rows), device=device),
        at=torch.from_numpy(at).to(device),
        mask=stacked_mask(torch.from_numpy(at + 1).to(device), own, kv_heads),
        groups=level(groups, kv_heads, device, fixed.groups if fixed else None),
        images=_fixed_images(images, kv_heads, device, fixed) if fixed else _images(images, device),
    )


def extent(prefixes: Sequence[KVSpan | None]) -> tuple[int, int, int]:
    """Slots, most rows a slot and most tokens a slot of a level over these prefixes; zeros where there are
    none.
    """
    seen = [prefix for prefix in prefixes if prefix is not None]
    if not seen:
        return 0, 0, 0
    crowds = np.bincount([prefix.slot for prefix in seen])
    return len(crowds), int(crowds.max()), max(prefix.length for prefix in seen)


def level(
    prefixes: Sequence[KVSpan | None],
    kv_heads: int,
    device: torch.device,
    fixed: tuple[int, int, int] | None = None,
) -> Level | None:
    """Lay out what each row sees of a stack; None where no row sees any of it."""
    slots, width, longest = fixed or extent(prefixes)
    if slots == 0:
        return None
    grouped, lengths = np.zeros((slots, width), dtype=np.int64), np.zeros(slots, dtype=np.int64)
    ungroup, taken = np.zeros(len(prefixes), dtype=np.int64), [0] * slots
    for row, prefix in enumerate(prefixes):
        if prefix is not None:
            grouped[prefix.slot, taken[prefix.slot]] = row
            ungroup[row] = prefix.slot * width + taken[prefix.slot]
            taken[prefix.slot] += 1
            lengths[prefix.slot] = prefix.length
    absent = [HIDDEN if prefix is None else 0.0 for prefix in prefixes]
    return Level(
        grouped=torch.from_numpy(grouped.reshape(-1)).to(device),
        mask=stacked_mask(torch.from_numpy(lengths).to(device), longest, kv_heads),
        ungroup=torch.from_numpy(ungroup).to(device),
        absent=torch.tensor(absent, device=device),
    )


def _fixed_images(prefixes: Sequence[KVSpan | None], kv_heads: int, device: torch.device, fixed: FixedShape) -> Level:
    made = level(prefixes, kv_heads, device, fixed.images)
    if made is None:
        raise ValueError("a fixed shape without images")
    return made


def _images(prefixes: Sequence[KVSpan | None], device: torch.device) -> Images:
    members: dict[KVSpan, list[int]] = {}
    for row, prefix in enumerate(prefixes):
        if prefix is not None:
            members.setdefault(prefix, []).append(row)
    order = np.argsort(np.concatenate(list(members.values())))
    seen = [(prefix, torch.tensor(rows, device=device)) for prefix, rows in members.items()]
    return Images(seen, torch.from_numpy(order).to(device))


def _attend_prefix(stack: KVStack, layer: int, query: Tensor, prefix: KVSpan) -> Part:
    keys = stack.keys[layer][prefix.slot, :, : prefix.length]
    values = stack.values[layer][prefix.slot, :, : prefix.length]
    return attend_shared(query, keys, values)
