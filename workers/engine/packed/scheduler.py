"""What runs in which slot, and when: policy alone, no torch.

A sequence is either waiting, in its group's line, or running, in the slot that is its place in ``running``. An image's
sequences are kept together: those whose image is in use go first, then by arrival.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from collections.abc import Sequence as Many

from workers.engine.packed.prefix_cache import PrefixCache
from workers.engine.packed.sequence import SchedulerOutput, Sequence, SequenceGroup


class Scheduler:
    """The waiting, and the running in slots 0 .. ``len(running)`` - 1."""

    def __init__(self, prefix_cache: PrefixCache, prefill_tokens: int, slots: int = 0) -> None:
        """``prefill_tokens``: most prompt tokens in a step, the last prompt's excess aside."""
        self.running: list[Sequence] = []
        self._prefix_cache, self._prefill_tokens = prefix_cache, prefill_tokens
        self._images: OrderedDict[str, deque[SequenceGroup]] = OrderedDict()
        self.resize(slots)

    def resize(self, slots: int) -> None:
        """Change the number of slots, of sequences and of groups' shared prefixes alike; not below what runs."""
        self.slots = slots
        taken = self.taken_group_slots()
        self._free_group_slots = [slot for slot in range(slots - 1, -1, -1) if slot not in taken]

    @property
    def num_waiting(self) -> int:
        """Sequences not in a slot yet."""
        return sum(len(group.waiting) for group in self._groups())

    @property
    def has_work(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self.running or self._images)

    def add(self, group: SequenceGroup) -> None:
        """Queue a group's waiting sequences."""
        self._images.setdefault(group.image_key, deque()).append(group)

    def next_image(self) -> SequenceGroup | None:
        """A group of the first image in line whose prefix is not cached, where slots would else stay free."""
        room = self.slots - len(self.running)
        for key, groups in self._in_line():
            if room <= 0:
                return None
            if key not in self._prefix_cache:
                return groups[0]
            room -= sum(len(group.waiting) for group in groups)
        return None

    def schedule(self) -> SchedulerOutput:
        """The next step: sequences whose prefixes are there start to run; missing shared prefixes are computed."""
        decode, new, shared = tuple(self.running), list[Sequence](), list[SequenceGroup]()
        room, budget = self.slots - len(decode), self._prefill_tokens
        for group in self._ready_groups():
            if room <= 0 or budget <= 0:
                break
            if group.shared_token_ids and group.slot is None:
                if self._take_slot(group):
                    shared.append(group)
                    budget -= len(group.shared_token_ids)
                    room -= len(group.waiting)
                continue  # a group that has a slot may stand behind one that finds none, and must not wait for it
            started = self._start_some(group, room, budget)
            new += started
            room -= len(started)
            budget -= sum(sequence.num_tokens for sequence in started)
        followers = tuple(sequence for group in shared for sequence in group.waiting)
        return SchedulerOutput(decode, tuple(new), tuple(shared), followers)

    def schedule_only(self, sequences: Many[Sequence]) -> tuple[SchedulerOutput, SchedulerOutput]:
        """Two steps for these waiting sequences and nothing else: their shared prefixes, then they themselves.

        Nothing may be running; they must be one of the ``isolation_batches``.
        """
        groups = dict.fromkeys(sequence.group for sequence in sequences)
        shared = tuple(group for group in groups if group.shared_token_ids and self._take_slot(group))
        for sequence in sequences:
            sequence.group.waiting.remove(sequence)
            self._start(sequence)
        return SchedulerOutput((), (), shared), SchedulerOutput((), tuple(sequences))

    def isolation_batches(self, sequences: Many[Sequence]) -> list[list[Sequence]]:
        """These sequences in batches that have slots and stay within the budget of a step's prefill."""
        batches: list[list[Sequence]] = [[]]
        budget = self._prefill_tokens
        for sequence in sequences:
            tokens = sequence.num_tokens + len(sequence.group.shared_token_ids)
            if batches[-1] and (tokens > budget or len(batches[-1]) == self.slots):
                batches.append([])
                budget = self._prefill_tokens
            batches[-1].append(sequence)
            budget -= tokens
        return batches

    def finish(self, sequence: Sequence) -> tuple[int, int] | None:
        """Take a sequence out of its slot; gives (from, to) where the last one must be moved to close the gap."""
        slot, last = self.running.index(sequence), len(self.running) - 1
        self.running[slot] = self.running[last]
        self.running.pop()
        sequence.group.num_running -= 1
        self._tidy(sequence.group)
        return None if slot == last else (last, slot)

    def preempt_all(self) -> int:
        """Send all that runs back to the head of the line with what it has written; gives how many."""
        preempted, self.running = self.running, []
        for sequence in reversed(preempted):
            group = sequence.group
            group.num_running -= 1
            group.waiting.appendleft(sequence)
            groups = self._images.setdefault(group.image_key, deque())
            if group not in groups:
                groups.appendleft(group)
            self._images.move_to_end(group.image_key, last=False)
        for group in self._groups():
            group.slot = None
        self._free_group_slots = list(range(self.slots - 1, -1, -1))
        return len(preempted)

    def remove(self, sequence: Sequence) -> None:
        """Forget a waiting sequence, if it still waits."""
        if sequence in sequence.group.waiting:
            sequence.group.waiting.remove(sequence)
        self._tidy(sequence.group)

    def waiting_for(self, image_key: str) -> tuple[Sequence, ...]:
        """What waits for an image."""
        return tuple(sequence for group in self._images.get(image_key, ()) for sequence in group.waiting)

    def longest(self) -> tuple[int, int, int]:
        """Most tokens of an image's prefix, a group's shared prefix and a sequence's slot, over all that waits."""
        groups = list(self._groups())
        return (
            max((len(group.image_token_ids) for group in groups), default=0),
            max((len(group.shared_token_ids) for group in groups), default=0),
            max((sequence.max_slot_tokens for group in groups for sequence in group.waiting), default=0),
        )

    def longest_waiting(self) -> tuple[Sequence, ...]:
        """The waiting sequence that may need most memory, if any waits."""
        waiting = [sequence for group in self._groups() for sequence in group.waiting]
        return tuple(sorted(waiting, key=lambda sequence: -sequence.max_context_tokens)[:1])

    def images_in_use(self) -> set[str]:
        """Keys of the images whose prefix a running sequence reads."""
        return {sequence.group.image_key for sequence in self.running}

    def taken_group_slots(self) -> set[int]:
        """Slots that hold a group's shared prefix, for sequences that run or wait."""
        groups = [*self._groups(), *(sequence.group for sequence in self.running)]
        return {group.slot for group in groups if group.slot is not None}

    def _groups(self) -> Iterator[SequenceGroup]:
        return (group for groups in self._images.values() for group in groups)

    def _in_line(self) -> list[tuple[str, deque[SequenceGroup]]]:
        in_use = self.images_in_use()
        return sorted(self._images.items(), key=lambda line: (line[0] not in in_use, line[0] not in self._prefix_cache))

    def _ready_groups(self) -> list[SequenceGroup]:
        """Groups whose image is cached, up to the first in line whose image is not: it is encoded before the next step,
        and starting others before it would part its sequences.
        """
        ready: list[SequenceGroup] = []
        for key, groups in self._in_line():
            if key not in self._prefix_cache:
                break
            ready += groups
        return ready

    def _take_slot(self, group: SequenceGroup) -> bool:
        if self._free_group_slots:
            group.slot = self._free_group_slots.pop()
            return True
        return False

    def _start_some(self, group: SequenceGroup, room: int, budget: int) -> list[Sequence]:
        started: list[Sequence] = []
        while group.waiting and len(started) < room and budget > 0:
            sequence = group.waiting.popleft()
            budget -= sequence.num_tokens
            self._start(sequence)
            started.append(sequence)
        return started

    def _start(self, sequence: Sequence) -> None:
        self.running.append(sequence)
        sequence.group.num_running += 1
        self._tidy(sequence.group)

    def _tidy(self, group: SequenceGroup) -> None:
        """Take a group that nobody waits in out of the line, and free its slot once nobody reads it."""
        if group.waiting:
            return
        groups = self._images.get(group.image_key)
        if groups is not None and group in groups:
            groups.remove(group)
            if not groups:
                del self._images[group.image_key]
        if group.num_running == 0 and group.slot is not None:
            self._free_group_slots.append(group.slot)
            self._free_group_slots.sort(reverse=True)
            group.slot = None
