"""One forward pass over packed tokens: rows that decode, then pieces of prompts, each with what it sees."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from workers.engine.attention import (
    HIDDEN,
    Part,
    attend_causal,
    attend_shared,
    attend_stacked,
    merge,
)
from workers.engine.kv_stack import KVStack


@dataclass(frozen=True)
class Stacks:
    """Where keys and values live: pictures' prefixes, groups' shared texts, sequences' own tokens."""

    pictures: KVStack
    groups: KVStack
    own: KVStack


@dataclass(frozen=True)
class Prefix:
    """A slot of a stack and how many tokens of it count."""

    slot: int
    length: int


@dataclass(frozen=True)
class Piece:
    """Tokens to prefill: they see their prefixes whole and each other causally, and are stored in a slot."""

    ids: list[int]
    position: int  # rotary position of the first token
    picture: Prefix
    group: Prefix | None  # the shared text they follow; None for that text itself, or where there is none
    target: int  # slot in the own stack, or in the groups' stack for a shared text
    shared: bool  # whether this is a group's shared text


@dataclass(frozen=True)
class Row:
    """A sequence that decodes one token; row i reads and writes slot i of the own stack."""

    token: int
    position: int  # rotary position of the token
    at: int  # where in its slot the token goes
    picture: Prefix
    group: Prefix | None


@dataclass
class PackedStep:
    """The tokens of one step and the index tensors by which they attend; built once, used by every layer."""

    ids: Tensor  # (tokens,)
    positions: Tensor  # (tokens,)
    last: Tensor  # tokens whose next token is wanted: all rows, and the end of each own piece
    stacks: Stacks
    decode: DecodePart | None
    prefill: PrefillPart | None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As ``attention.Step`` says."""
        rows = self.decode.rows if self.decode else 0
        outs = []
        if self.decode:
            outs.append(self.decode.attend(self.stacks, layer, query[:rows], key[:rows], value[:rows]))
        if self.prefill:
            outs.append(self.prefill.attend(self.stacks, layer, query[rows:], key[rows:], value[rows:]))
        return (torch.cat(outs) if len(outs) > 1 else outs[0]).to(query.dtype)


@dataclass
class DecodePart:
    """Rows 0 .. n-1, in slots 0 .. n-1."""

    rows: int
    slots: Tensor  # (rows,) 0 .. rows - 1
    at: Tensor  # (rows,) where the new token goes
    mask: Tensor  # (rows, length) added to the scores of a row's own tokens
    pictures: list[tuple[Prefix, Tensor | slice]]  # each picture's prefix and the rows that see it
    grouped: Tensor | None  # (groups * width,) rows by group, padded with row 0
    group_mask: Tensor | None  # (groups, length)
    ungroup: Tensor | None  # (rows,) where in ``grouped`` a row is
    groupless: Tensor | None  # (rows,) added to the log-sum-exp: hides the group level from rows without one
    order: Tensor | None  # (rows,) where in the concatenation of ``pictures`` a row is

    def attend(self, stacks: Stacks, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(rows, heads, size) from the three levels."""
        own, groups = stacks.own, stacks.groups
        own.write(layer, self.slots, self.at, key, value)
        length = self.mask.shape[1]
        keys, values = own.keys[layer][: self.rows, :, :length], own.values[layer][: self.rows, :, :length]
        parts = [attend_stacked(query[:, None], keys, values, self.mask)]
        if self.grouped is not None and self.group_mask is not None:
            count, shared = self.group_mask.shape
            keys, values = groups.keys[layer][:count, :, :shared], groups.values[layer][:count, :, :shared]
            by_group = query[self.grouped].view(count, -1, *query.shape[1:])
            out, lse = attend_stacked(by_group, keys, values, self.group_mask)
            lse = lse[self.ungroup]
            parts.append(
                (out[self.ungroup], lse if self.groupless is None else lse + self.groupless[:, None])
            )
        parts.append(self._pictures(stacks.pictures, layer, query))
        return merge(parts)

    def _pictures(self, stack: KVStack, layer: int, query: Tensor) -> Part:
        parts = []
        for prefix, rows in self.pictures:
            keys = stack.keys[layer][prefix.slot, :, : prefix.length]
            values = stack.values[layer][prefix.slot, :, : prefix.length]
            parts.append(attend_shared(query[rows], keys, values))
        if len(parts) == 1:
            return parts[0]
        out, lse = (torch.cat(each) for each in zip(*parts, strict=True))
        return (out, lse) if self.order is None else (out[self.order], lse[self.order])


@dataclass
class PrefillPart:
    """Pieces of prompts one after another; tokens are counted from the first piece's."""

    padded: Tensor  # (pieces, longest) tokens by piece, the last one repeated
    unpad: Tensor  # (tokens,) where in ``padded`` a token is
    seen: list[tuple[bool, Prefix, int, int]] = field(default_factory=list)  # (of a group?, prefix, from, to)
    writes: list[tuple[bool, Tensor, Tensor, Tensor]] = field(
        default_factory=list
    )  # (shared?, tokens, slots, places)

    def attend(self, stacks: Stacks, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(tokens, heads, size): each piece causally, then every prefix that a range of tokens sees."""
        for shared, tokens, slots, places in self.writes:
            stack = stacks.groups if shared else stacks.own
            stack.write(layer, slots, places, key[tokens], value[tokens])
        out, lse = attend_causal(query[self.padded], key[self.padded], value[self.padded])
        out, lse = out[self.unpad], lse[self.unpad]
        for of_group, prefix, start, end in self.seen:
            stack = stacks.groups if of_group else stacks.pictures
            keys = stack.keys[layer][prefix.slot, :, : prefix.length]
            values = stack.values[layer][prefix.slot, :, : prefix.length]
            part = attend_shared(query[start:end], keys, values)
            before = (out[start:end], lse[start:end])
            out[start:end] = merge([before, part])
            lse[start:end] = torch.logaddexp(before[1], part[1])
        return out


def pack(rows: list[Row], pieces: list[Piece], stacks: Stacks, device: torch.device) -> PackedStep:
    """Lay out a step's tokens: rows first, then pieces, those over one prefix next to each other."""
    pieces = sorted(pieces, key=_key)
    ids = [row.token for row in rows] + [token for piece in pieces for token in piece.ids]
    positions = [np.array([row.position for row in rows], dtype=np.int64)]
    positions += [np.arange(len(piece.ids)) + piece.position for piece in pieces]
    ends = np.cumsum([len(rows)] + [len(piece.ids) for piece in pieces])[1:] - 1
    last = [
        *range(len(rows)),
        *(int(end) for end, piece in zip(ends, pieces, strict=True) if not piece.shared),
    ]
    return PackedStep(
        ids=torch.tensor(ids, device=device),
        positions=torch.from_numpy(np.concatenate(positions)).to(device),
        last=torch.tensor(last, dtype=torch.long, device=device),
        stacks=stacks,
        decode=_decode_part(rows, device) if rows else None,
        prefill=_prefill_part(pieces, device) if pieces else None,
    )


def order_of(pieces: list[Piece]) -> list[int]:
    """Which of the given own pieces each wanted token after the rows' belongs to, in the packed order."""
    indexed = sorted(range(len(pieces)), key=lambda at: _key(pieces[at]))
    return [at for at in indexed if not pieces[at].shared]


def _key(piece: Piece) -> tuple[bool, int, int]:
    return (piece.shared, piece.picture.slot, _slot(piece.group))


def _slot(prefix: Prefix | None) -> int:
    return -1 if prefix is None else prefix.slot


def _decode_part(rows: list[Row], device: torch.device) -> DecodePart:
    at = np.array([row.at for row in rows])
    mask = np.where(np.arange(at.max() + 1) > at[:, None], HIDDEN, 0.0).astype(np.float32)
    pictures, order = _by_picture(rows)
    grouped, group_mask, ungroup = _by_group(rows)

    def tensor(array: np.ndarray | None) -> Tensor | None:
        return None if array is None else torch.from_numpy(array).to(device)

    return DecodePart(
        rows=len(rows),
        slots=torch.arange(len(rows), device=device),
        at=torch.from_numpy(at).to(device),
        mask=torch.from_numpy(mask).to(device),
        pictures=[
            (prefix, chosen if isinstance(chosen, slice) else torch.tensor(chosen, device=device))
            for prefix, chosen in pictures
        ],
        grouped=tensor(grouped),
        group_mask=tensor(group_mask),
        ungroup=tensor(ungroup),
        groupless=_groupless(rows, device),
        order=tensor(order),
    )


def _by_picture(rows: list[Row]) -> tuple[list[tuple[Prefix, list[int] | slice]], np.ndarray | None]:
    """Each picture's rows, and the order that undoes their concatenation (None where it is the rows' own)."""
    members: dict[Prefix, list[int]] = {}
    for index, row in enumerate(rows):
        members.setdefault(row.picture, []).append(index)
    if len(members) == 1:
        return [(rows[0].picture, slice(None))], None
    return list(members.items()), np.argsort(np.concatenate(list(members.values())))


def _by_group(rows: list[Row]) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Rows by the group slot they see, padded to the widest group, the mask of each slot, and the way back.

    A row without a group gets row 0's result, which ``groupless`` hides.
    """
    count = max((row.group.slot + 1 for row in rows if row.group), default=0)
    if count == 0:
        return None, None, None
    members: list[list[int]] = [[] for _ in range(count)]
    lengths = [0] * count
    for index, row in enumerate(rows):
        if row.group:
            members[row.group.slot].append(index)
            lengths[row.group.slot] = row.group.length
    width = max(map(len, members))
    ungroup = np.zeros(len(rows), dtype=np.int64)
    grouped = np.zeros((count, width), dtype=np.int64)
    for slot, group in enumerate(members):
        grouped[slot, : len(group)] = group
        ungroup[group] = slot * width + np.arange(len(group))
    mask = np.where(np.arange(max(lengths)) >= np.array(lengths)[:, None], HIDDEN, 0.0).astype(np.float32)
    return grouped.reshape(-1), mask, ungroup


def _groupless(rows: list[Row], device: torch.device) -> Tensor | None:
    if all(row.group for row in rows):
        return None
    return torch.tensor([0.0 if row.group else HIDDEN for row in rows], device=device)


def _prefill_part(pieces: list[Piece], device: torch.device) -> PrefillPart:
    lengths = np.array([len(piece.ids) for piece in pieces])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    longest = int(lengths.max())
    places = np.arange(longest)
    padded = starts[:, None] + np.minimum(places, lengths[:, None] - 1)
    unpad = np.concatenate([index * longest + np.arange(length) for index, length in enumerate(lengths)])
    part = PrefillPart(torch.from_numpy(padded).to(device), torch.from_numpy(unpad).to(device))
    for of_group in (False, True):
        part.seen += [(of_group, *run) for run in _runs(pieces, starts, lengths, of_group)]
    for shared in (False, True):
        chosen = [index for index, piece in enumerate(pieces) if piece.shared == shared]
        if chosen:
            tokens = np.concatenate([starts[index] + np.arange(lengths[index]) for index in chosen])
            slots = np.concatenate([np.full(lengths[index], pieces[index].target) for index in chosen])
            places = np.concatenate([np.arange(lengths[index]) for index in chosen])
            where = [torch.from_numpy(array).to(device) for array in (tokens, slots, places)]
            part.writes.append((shared, where[0], where[1], where[2]))
    return part


def _runs(
    pieces: list[Piece], starts: np.ndarray, lengths: np.ndarray, of_group: bool
) -> list[tuple[Prefix, int, int]]:
    """Ranges of tokens whose pieces follow the same prefix."""
    runs: list[tuple[Prefix, int, int]] = []
    for piece, start, length in zip(pieces, starts, lengths, strict=True):
        prefix = piece.group if of_group else piece.picture
        if prefix is None:
            continue
        end = int(start + length)
        if runs and runs[-1][0] == prefix and runs[-1][2] == start:
            runs[-1] = (prefix, runs[-1][1], end)
        else:
            runs.append((prefix, int(start), end))
    return runs
