"""What enters which slot, and when: policy alone, no torch.

All prompts over an image share its prefix, all prompts of a pair (one submit) the pair's text: image ->
group -> sequence. An image's sequences are kept together: those whose prefix is in use go first, then by
arrival.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

from workers.engine.packed.prefix_cache import PrefixCache

WORTH_SHARING = 8  # tokens: a shorter common beginning costs more in bookkeeping than it saves


@dataclass(eq=False)
class Group:
    """Sequences of one submit over one image, whose prompts begin alike."""

    image: str
    prefix: list[int]  # the tokens up to the last visual one, which all prompts over the image share
    shared: list[int]  # the tokens they share after the image's prefix; empty where sharing does not pay
    waiting: deque[Sequence] = field(default_factory=deque)
    slot: int | None = None  # where the shared keys and values are, once they are computed
    running: int = 0


@dataclass(eq=False)
class Sequence:
    """One request in the making."""

    pending: Any  # carried along for the engine, unread here
    group: Group
    own: list[int]  # prompt tokens after what is shared
    prompt_tokens: int
    limit: int  # new tokens at most
    temperature: float
    seed: int
    new: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens of its own: what its slot holds (all but the newest token) and that token."""
        return len(self.own) + len(self.new)

    @property
    def most(self) -> int:
        """Tokens its slot must have room for."""
        return len(self.own) + self.limit


@dataclass
class SchedulerOutput:
    """One step: every row decodes one token; groups' shared texts and scheduled_new sequences' prompts are
    prefilled.
    """

    rows: list[Sequence]
    shared: list[Group]
    scheduled_new: list[Sequence]

    @property
    def sequences(self) -> list[Sequence]:
        """All that the step concerns; the first of a group stands for its shared text."""
        return self.rows + self.scheduled_new + [group.waiting[0] for group in self.shared]


class Scheduler:
    """The waiting, and the running in slots 0 .. ``len(rows)`` - 1."""

    def __init__(self, slots: int, prefill_tokens: int) -> None:
        self.slots = slots
        self.rows: list[Sequence] = []
        self._prefill_tokens = prefill_tokens
        self._images: OrderedDict[str, deque[Group]] = OrderedDict()
        self._group_slots: list[int] = []
        self.resize(slots)

    def resize(self, slots: int) -> None:
        """Change the number of slots, not below what runs."""
        self.slots = slots
        taken = self.taken_group_slots()
        self._group_slots = [slot for slot in range(self.group_slots - 1, -1, -1) if slot not in taken]

    def taken_group_slots(self) -> set[int]:
        """Slots that hold a group's shared text, for sequences that run or wait."""
        groups = [group for line in self._images.values() for group in line]
        groups += [sequence.group for sequence in self.rows]
        return {group.slot for group in groups if group.slot is not None}

    @property
    def group_slots(self) -> int:
        """Groups whose shared text can be held at once."""
        return self.slots

    @property
    def waiting(self) -> int:
        """Sequences not in a slot yet."""
        return sum(len(group.waiting) for groups in self._images.values() for group in groups)

    def add(self, group: Group, *, first: bool = False) -> None:
        """Queue a group's waiting sequences; ``first`` is for those that had started before."""
        groups = self._images.setdefault(group.image, deque())
        if group not in groups:
            groups.appendleft(group) if first else groups.append(group)

    def next_image(self, cache: PrefixCache) -> Group | None:
        """A group of the first image in line whose prefix is missing, when slots would else stay free."""
        room = self.slots - len(self.rows)
        for key, groups in self._in_line(cache):
            if room <= 0:
                return None
            if key not in cache:
                return groups[0]
            room -= sum(len(group.waiting) for group in groups)
        return None

    def plan(self, cache: PrefixCache) -> SchedulerOutput:
        """The next step: sequences whose prefixes are ready enter; the shared text of those that follow is
        computed.
        """
        plan = SchedulerOutput(list(self.rows), [], [])
        room, budget = self.slots - len(self.rows), self._prefill_tokens
        for key, groups in self._in_line(cache):
            if key not in cache:
                break  # it is encoded before the next step; scheduled_new others first would part its sequences
            for group in list(groups):
                if room <= 0 or budget <= 0:
                    return plan
                if group.shared and group.slot is None:
                    if not self._group_slots:
                        continue  # one that has a slot already may stand behind it, and must not wait for it
                    group.slot = self._group_slots.pop()
                    plan.shared.append(group)
                    budget -= len(group.shared)
                    room -= len(group.waiting)
                elif group not in plan.shared:
                    taken = self._enter(group, room, budget, plan)
                    room -= taken
                    budget -= sum(sequence.length for sequence in plan.scheduled_new[-taken:]) if taken else 0
        return plan

    def started(self, plan: SchedulerOutput) -> None:
        """The plan's step is done: what entered is running, in the slots behind the rows that were."""
        self.rows += plan.scheduled_new

    def finish(self, sequence: Sequence) -> tuple[int, int] | None:
        """Take a sequence out of its slot; gives (from, to) where the last row must be moved to close the
        gap.
        """
        slot, last = self.rows.index(sequence), len(self.rows) - 1
        self.rows[slot] = self.rows[last]
        self.rows.pop()
        self._left(sequence.group)
        return None if slot == last else (last, slot)

    def images_read(self) -> set[str]:
        """Keys of the images whose prefix a running sequence reads."""
        return {sequence.group.image for sequence in self.rows}

    def preempt(self, also: list[Sequence]) -> list[Sequence]:
        """Send all that runs, and ``also``, back to waiting with what they have written; gives them."""
        back = self.rows + [sequence for sequence in also if sequence not in self.rows]
        self.rows = []
        for sequence in reversed(back):
            sequence.group.running -= 1
            sequence.group.waiting.appendleft(sequence)
            self.add(sequence.group, first=True)
        for groups in self._images.values():
            for group in groups:
                group.slot = None
        self._group_slots = list(range(self.group_slots - 1, -1, -1))
        return back

    def drop(self, sequence: Sequence) -> None:
        """Forget a waiting sequence."""
        group = sequence.group
        if sequence in group.waiting:
            group.waiting.remove(sequence)
        self._tidy(group)

    def first_waiting(self) -> Sequence:
        """The sequence that is first in line; there must be one."""
        return next(iter(self._images.values()))[0].waiting[0]

    def drop_image(self, key: str) -> list[Sequence]:
        """Forget all that waits for an image, and give it."""
        groups = self._images.pop(key, deque())
        return [sequence for group in groups for sequence in group.waiting]

    def longest(self) -> tuple[int, int, int]:
        """Most tokens of an image's prefix, of a group's shared text and of a sequence's own, over all that
        waits.
        """
        groups = [group for groups in self._images.values() for group in groups]
        own = max((sequence.most for group in groups for sequence in group.waiting), default=0)
        prefix = max((len(group.prefix) for group in groups), default=0)
        return prefix, max((len(group.shared) for group in groups), default=0), own

    def _in_line(self, cache: PrefixCache) -> list[tuple[str, deque[Group]]]:
        lines = list(self._images.items())
        in_use = self.images_read()
        return sorted(lines, key=lambda line: (line[0] not in in_use, line[0] not in cache))

    def _enter(self, group: Group, room: int, budget: int, plan: SchedulerOutput) -> int:
        taken = 0
        while group.waiting and taken < room and budget > 0:
            sequence = group.waiting.popleft()
            budget -= sequence.length
            plan.scheduled_new.append(sequence)
            group.running += 1
            taken += 1
        self._tidy(group)
        return taken

    def _left(self, group: Group) -> None:
        group.running -= 1
        self._tidy(group)

    def _tidy(self, group: Group) -> None:
        """Take an empty group out of the line, and free its slot once nobody reads it."""
        if group.waiting:
            return
        groups = self._images.get(group.image)
        if groups is not None and group in groups:
            groups.remove(group)
            if not groups:
                del self._images[group.image]
        if group.running == 0 and group.slot is not None:
            self._group_slots.append(group.slot)
            self._group_slots.sort(reverse=True)
            group.slot = None


def group_sequences(prefix: int, prompts: list[list[int]]) -> tuple[list[int], int]:
    """What prompts over one image share beyond its ``prefix`` tokens: those tokens, and where each one's
    own begin.

    A prompt alone shares its text with nobody, but is laid out the same way: rows whose own tokens are
    equally many attend together without padding. The last token of a prompt is never shared: a sequence has
    at least one token of its own to go on from.
    """
    first, last = min(prompts), max(prompts)
    end = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    end = min(end, min(map(len, prompts)) - 1)
    return (first[prefix:end], end) if end - prefix >= WORTH_SHARING else ([], prefix)
