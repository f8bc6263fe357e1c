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
from workers.engine.runner.step import no_blocks

ADMIT_SHARE = 16  # of the slots: so few must be free before prompts start, where prefill is apart


class Scheduler:
    """The waiting, and the running in slots 0 .. ``len(running)`` - 1."""

    def __init__(
        self, prefix_cache: PrefixCache, prefill_tokens: int, slots: int = 0, *, prefill_apart: bool = False
    ) -> None:
        """``prefill_tokens``: most prompt tokens in a step, the last prompt's excess aside.

        ``prefill_apart``: steps either decode or prefill, so that those that decode have fixed shapes; prompts start
        in batches, a shared prefix and what follows it in one step.
        """
        self.running: list[Sequence] = []
        self._prefix_cache, self._prefill_tokens, self._apart = prefix_cache, prefill_tokens, prefill_apart
        self._pool = prefix_cache.pool
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
        decode = tuple(self.running)
        if not self._apart:
            return self._admit(decode)
        # A batch of prompts costs a step that is not replayed. Waiting for a sixteenth of the slots keeps these steps
        # rare and the slots busy: half a sixteenth stands empty on average.
        if decode and self.slots - len(decode) < max(1, self.slots // ADMIT_SHARE):
            return SchedulerOutput(decode, ())
        admitted = self._admit(())
        return admitted if admitted.involved else SchedulerOutput(decode, ())

    def _admit(self, decode: tuple[Sequence, ...]) -> SchedulerOutput:
        """Start what finds room; ``decode`` goes on in the same step."""
        new, shared = list[Sequence](), list[SequenceGroup]()
        room, budget, first = self.slots - len(self.running), self._prefill_tokens, len(self.running)
        for group in self._ready_groups():
            if room <= 0 or budget <= 0:
                break
            if group.shared_token_ids and group.slot is None:
                if self._take_slot(group):
                    shared.append(group)
                    budget -= len(group.shared_token_ids)
                    room -= 0 if self._apart else len(group.waiting)
                if not self._apart or group.slot is None:
                    continue  # one that has a slot may stand behind one that finds none, and must not wait for it
            started = self._start_some(group, room, budget)
            new += started
            room -= len(started)
            budget -= sum(sequence.num_tokens for sequence in started)
        followers = tuple(sequence for group in shared for sequence in group.waiting)
        return SchedulerOutput(decode, tuple(new), tuple(shared), followers, first)

    def schedule_only(self, sequences: Many[Sequence]) -> tuple[SchedulerOutput, SchedulerOutput]:
        """Two steps for these waiting sequences and nothing else: their shared prefixes, then they themselves.

        Nothing may be running; they must be one of the ``isolation_batches``.
        """
        groups = dict.fromkeys(sequence.group for sequence in sequences)
        shared = tuple(group for group in groups if group.shared_token_ids and self._take_slot(group))
        for sequence in sequences:
            if not self._start(sequence):
                raise MemoryError(f"no room for a sequence of {sequence.max_slot_tokens} tokens")
        return SchedulerOutput((), (), shared), SchedulerOutput((), tuple(sequences))

    def isolation_batches(self, sequences: Many[Sequence]) -> list[list[Sequence]]:
        """These sequences in batches that have slots and stay within the budget of a step's prefill."""
        batches: list[list[Sequence]] = [[]]
        budget, blocks = self._prefill_tokens, self._pool.num_free
        for sequence in sequences:
            tokens = sequence.num_tokens + len(sequence.group.shared_token_ids)
            shared = self._pool.blocks_for(len(sequence.group.shared_token_ids))
            needed = self._pool.blocks_for(sequence.max_slot_tokens) + shared
            if batches[-1] and (tokens > budget or needed > blocks or len(batches[-1]) == self.slots):
                batches.append([])
                budget, blocks = self._prefill_tokens, self._pool.num_free
            batches[-1].append(sequence)
            budget -= tokens
            blocks -= needed
        return batches

    def finish(self, sequence: Sequence) -> tuple[int, int] | None:
        """Take a sequence out of its slot; gives (from, to) where the last one must be moved to close the gap."""
        slot, last = self.running.index(sequence), len(self.running) - 1
        self.running[slot] = self.running[last]
        self.running.pop()
        self._free_blocks(sequence)
        sequence.group.num_running -= 1
        self._tidy(sequence.group)
        return None if slot == last else (last, slot)

    def preempt_all(self) -> int:
        """Send all that runs back to the head of the line with what it has written; gives how many."""
        preempted, self.running = self.running, []
        for sequence in reversed(preempted):
            group = sequence.group
            self._free_blocks(sequence)
            group.num_running -= 1
            group.waiting.appendleft(sequence)
            groups = self._images.setdefault(group.image_key, deque())
            if group not in groups:
                groups.appendleft(group)
            self._images.move_to_end(group.image_key, last=False)
        for group in self._groups():
            group.slot = None
            self._free_blocks(group)
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
        """Where there is a slot, and with its blocks those of a sequence that follows."""
        if not self._free_group_slots:
            return False
        shared, own = len(group.shared_token_ids), group.num_own_tokens
        if not self._make_room(self._pool.blocks_for(shared) + self._pool.blocks_for(own)):
            return False
        blocks = self._pool.allocate(shared)
        assert blocks is not None
        group.slot, group.blocks = self._free_group_slots.pop(), blocks
        return True

    def _make_room(self, blocks: int) -> bool:
        """Forget images that nobody wants until there are so many blocks, if that is possible."""
        while self._pool.num_free < blocks:
            if not self._prefix_cache.evict(self.images_in_use() | self._images.keys()):
                return False
        return True

    def _free_blocks(self, owner: Sequence | SequenceGroup) -> None:
        self._pool.free(owner.blocks)
        owner.blocks = no_blocks()

    def _start_some(self, group: SequenceGroup, room: int, budget: int) -> list[Sequence]:
        started: list[Sequence] = []
        while group.waiting and len(started) < room and budget > 0:
            sequence = group.waiting[0]
            if not self._start(sequence):
                break
            budget -= sequence.num_tokens
            started.append(sequence)
        return started

    def _start(self, sequence: Sequence) -> bool:
        if not self._make_room(self._pool.blocks_for(sequence.max_slot_tokens)):
            return False
        blocks = self._pool.allocate(sequence.max_slot_tokens)
        assert blocks is not None
        sequence.blocks = blocks
        sequence.group.waiting.remove(sequence)
        self.running.append(sequence)
        sequence.group.num_running += 1
        self._tidy(sequence.group)
        return True

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
            self._free_blocks(group)
