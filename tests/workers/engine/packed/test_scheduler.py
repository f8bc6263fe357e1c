"""What runs in which slot, and when; no device is needed for it."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from workers.engine.packed.prefix_cache import CachedPrefix, PrefixCache
from workers.engine.packed.scheduler import Scheduler
from workers.engine.packed.sequence import Sequence, SequenceGroup


def group(image: str, size: int, *, shared: int = 0, suffix: int = 5, max_tokens: int = 10) -> SequenceGroup:
    made = SequenceGroup(image, [9] * 30, list(range(shared)))
    for _ in range(size):
        made.waiting.append(Sequence(None, made, [1] * suffix, 50, max_tokens, 0.0, 0))
    return made


def cache(*images: str) -> PrefixCache:
    filled = PrefixCache(8)
    for image in images:
        reserved = filled.reserve(())
        assert reserved is not None
        filled.fill(image, CachedPrefix(reserved[0], 30, 28, 10))
    return filled


def step(scheduler: Scheduler) -> tuple[int, int, int]:
    """One step: sequences that decode, groups whose shared prefix is computed, sequences that start."""
    output = scheduler.schedule()
    return len(output.decode), len(output.shared_groups), len(output.scheduled_new)


def test_slots_are_filled_and_refilled_at_once() -> None:
    scheduler = Scheduler(cache("a"), 1000, 3)
    scheduler.add(group("a", 5))
    assert step(scheduler) == (0, 0, 3)
    scheduler.finish(scheduler.running[0])
    assert step(scheduler) == (2, 0, 1)
    assert scheduler.num_waiting == 1


def test_a_shared_prefix_is_computed_once_and_before_its_sequences_start() -> None:
    scheduler = Scheduler(cache("a"), 1000, 4)
    scheduler.add(group("a", 3, shared=20))
    assert step(scheduler) == (0, 1, 0)
    assert step(scheduler) == (0, 0, 3)
    assert step(scheduler) == (3, 0, 0)


def test_a_group_slot_is_free_again_after_its_last_sequence() -> None:
    scheduler = Scheduler(cache("a"), 1000, 4)
    for _ in range(6):  # more groups than there are group slots
        scheduler.add(group("a", 2, shared=20))
    for _ in range(40):
        step(scheduler)
        if scheduler.running:
            scheduler.finish(scheduler.running[-1])
    assert not scheduler.has_work


def test_a_group_whose_sequences_are_all_removed_leaves_its_slot() -> None:
    scheduler = Scheduler(cache("a"), 1000, 1)
    scheduler.add(group("a", 2, shared=20))
    assert step(scheduler) == (0, 1, 0)
    for sequence in scheduler.waiting_for("a"):
        scheduler.remove(sequence)
    scheduler.add(group("a", 1, shared=20))
    assert step(scheduler) == (0, 1, 0)


def test_a_group_that_holds_its_slot_does_not_wait_for_one_that_wants_it() -> None:
    scheduler = Scheduler(cache("a", "b"), 1000, 2)
    for _ in range(2):
        scheduler.add(group("b", 1, shared=20))
    step(scheduler)  # both group slots are taken
    scheduler.add(group("a", 1, shared=20))
    scheduler._images.move_to_end("a", last=False)
    assert step(scheduler) == (0, 0, 2)


def test_an_image_in_use_goes_before_an_earlier_one() -> None:
    scheduler = Scheduler(cache("a", "b"), 1000, 2)
    scheduler.add(group("b", 1))
    step(scheduler)
    scheduler.add(group("a", 2))
    scheduler.add(group("b", 1))
    assert [sequence.group.image_key for sequence in scheduler.schedule().scheduled_new] == ["b"]


def test_the_next_image_is_wanted_only_when_slots_would_stay_free() -> None:
    scheduler = Scheduler(cache("a"), 1000, 4)
    scheduler.add(group("a", 4))
    scheduler.add(group("b", 1))
    assert scheduler.next_image() is None
    scheduler.resize(8)
    wanted = scheduler.next_image()
    assert wanted is not None
    assert wanted.image_key == "b"


def test_prefill_is_bounded_by_its_budget() -> None:
    scheduler = Scheduler(cache("a"), 50, 100)
    scheduler.add(group("a", 30, suffix=10))
    assert step(scheduler) == (0, 0, 5)


def test_finishing_closes_the_gap_with_the_last_sequence() -> None:
    scheduler = Scheduler(cache("a"), 1000, 3)
    scheduler.add(group("a", 3))
    step(scheduler)
    last = scheduler.running[2]
    assert scheduler.finish(scheduler.running[0]) == (2, 0)
    assert scheduler.running[0] is last
    assert scheduler.finish(scheduler.running[1]) is None


def test_preempted_sequences_keep_what_they_wrote_and_go_first() -> None:
    scheduler = Scheduler(cache("a", "b"), 1000, 2)
    first = group("b", 2, shared=20)
    scheduler.add(first)
    step(scheduler)
    step(scheduler)
    scheduler.running[0].output_token_ids.append(7)
    for image in "ab":
        scheduler.add(group(image, 1))
    assert scheduler.preempt_all() == 2
    assert first.slot is None
    assert first.waiting[0].output_token_ids == [7]
    assert scheduler.schedule().shared_groups == (first,)  # its shared prefix is computed again


def test_what_was_scheduled_is_what_a_step_concerns_whatever_happens_to_it() -> None:
    scheduler = Scheduler(cache("a"), 1000, 4)
    scheduler.add(group("a", 1))
    scheduler.add(group("a", 3, shared=20))
    output = scheduler.schedule()
    involved = output.involved
    assert len(involved) == 4
    scheduler.preempt_all()
    for sequence in involved:
        scheduler.remove(sequence)
    assert output.involved == involved
    assert not scheduler.has_work
    with pytest.raises(FrozenInstanceError):
        output.decode = ()  # type: ignore[misc]


def test_chosen_sequences_are_scheduled_by_themselves_with_what_they_share() -> None:
    scheduler = Scheduler(cache("a"), 1000, 4)
    pairs = [group("a", 2, shared=20), group("a", 2)]
    for pair in pairs:
        scheduler.add(pair)
    chosen = [pairs[0].waiting[1], pairs[1].waiting[0]]
    shared, output = scheduler.schedule_only(chosen)
    assert (shared.shared_groups, shared.sampled) == ((pairs[0],), ())
    assert (output.shared_groups, output.sampled) == ((), tuple(chosen))
    assert scheduler.running == chosen
    assert scheduler.num_waiting == 2


def test_batches_for_isolation_fit_the_slots_and_the_prefill_budget() -> None:
    waiting = list(group("a", 7, suffix=10).waiting)
    assert [len(batch) for batch in Scheduler(cache(), 1000, 3).isolation_batches(waiting)] == [3, 3, 1]
    assert [len(batch) for batch in Scheduler(cache(), 25, 100).isolation_batches(waiting)] == [2, 2, 2, 1]
    assert [len(batch) for batch in Scheduler(cache(), 5, 100).isolation_batches(waiting)] == [1] * 7
