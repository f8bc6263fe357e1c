"""Device-free policy: what enters which slot, what is cached, and how large all of it is."""

from __future__ import annotations

from workers.engine.packed.memory_planner import GROW_AFTER, MemoryPlanner
from workers.engine.packed.prefix_cache import CachedPrefix, PrefixCache
from workers.engine.packed.scheduler import Group, Scheduler, Sequence, group_sequences


def group(image: str, size: int, *, shared: int = 0, own: int = 5, limit: int = 10) -> Group:
    made = Group(image, [9] * 30, list(range(shared)))
    for _ in range(size):
        made.waiting.append(Sequence(None, made, [1] * own, 50, limit, 0.0, 0))
    return made


def cache(*images: str) -> PrefixCache:
    filled = PrefixCache(8)
    for image in images:
        slot = filled.reserve(())
        assert slot is not None
        filled.fill(image, CachedPrefix(slot, 30, 28, 10))
    return filled


def step(scheduler: Scheduler, prefixes: PrefixCache) -> tuple[int, int, int]:
    """One plan carried out: rows that decode, groups whose text is computed, sequences that enter."""
    plan = scheduler.plan(prefixes)
    scheduler.started(plan)
    return len(plan.rows), len(plan.shared), len(plan.scheduled_new)


def test_slots_are_filled_and_refilled_at_once() -> None:
    scheduler = Scheduler(3, 1000)
    scheduler.add(group("a", 5))
    assert step(scheduler, cache("a")) == (0, 0, 3)
    scheduler.finish(scheduler.rows[0])
    assert step(scheduler, cache("a")) == (2, 0, 1)
    assert scheduler.waiting == 1


def test_a_shared_text_is_computed_once_and_before_its_sequences_enter() -> None:
    scheduler = Scheduler(4, 1000)
    scheduler.add(group("a", 3, shared=20))
    prefixes = cache("a")
    assert step(scheduler, prefixes) == (0, 1, 0)
    assert step(scheduler, prefixes) == (0, 0, 3)
    assert step(scheduler, prefixes) == (3, 0, 0)


def test_a_group_slot_is_free_again_after_its_last_sequence() -> None:
    scheduler = Scheduler(4, 1000)
    prefixes = cache("a")
    for _ in range(6):  # more groups than there are group slots
        scheduler.add(group("a", 2, shared=20))
    for _ in range(40):
        step(scheduler, prefixes)
        if scheduler.rows:
            scheduler.finish(scheduler.rows[-1])
    assert scheduler.waiting == 0
    assert not scheduler.rows


def test_a_group_that_holds_its_slot_does_not_wait_for_one_that_wants_it() -> None:
    scheduler = Scheduler(2, 1000)
    prefixes = cache("a", "b")
    for _ in range(2):
        scheduler.add(group("b", 1, shared=20))
    step(scheduler, prefixes)  # both group slots are taken
    earlier = group("a", 1, shared=20)
    scheduler.add(earlier)
    scheduler._images.move_to_end("a", last=False)
    assert step(scheduler, prefixes) == (0, 0, 2)


def test_a_image_in_use_goes_before_an_earlier_one() -> None:
    scheduler = Scheduler(2, 1000)
    prefixes = cache("a", "b")
    scheduler.add(group("b", 1))
    step(scheduler, prefixes)
    scheduler.add(group("a", 2))
    scheduler.add(group("b", 1))
    plan = scheduler.plan(prefixes)
    assert [sequence.group.image for sequence in plan.scheduled_new] == ["b"]


def test_the_next_image_is_wanted_only_when_slots_would_stay_free() -> None:
    scheduler = Scheduler(4, 1000)
    scheduler.add(group("a", 4))
    scheduler.add(group("b", 1))
    assert scheduler.next_image(cache("a")) is None
    scheduler.resize(8)
    wanted = scheduler.next_image(cache("a"))
    assert wanted is not None
    assert wanted.image == "b"


def test_prefill_is_bounded_by_its_budget() -> None:
    scheduler = Scheduler(100, 50)
    scheduler.add(group("a", 30, own=10))
    assert step(scheduler, cache("a"))[2] == 5


def test_finishing_closes_the_gap_with_the_last_row() -> None:
    scheduler = Scheduler(3, 1000)
    scheduler.add(group("a", 3))
    step(scheduler, cache("a"))
    last = scheduler.rows[2]
    assert scheduler.finish(scheduler.rows[0]) == (2, 0)
    assert scheduler.rows[0] is last
    assert scheduler.finish(scheduler.rows[1]) is None


def test_preempted_sequences_keep_what_they_wrote_and_go_first() -> None:
    scheduler = Scheduler(2, 1000)
    first = group("a", 2, shared=20)
    scheduler.add(first)
    prefixes = cache("a")
    step(scheduler, prefixes)
    step(scheduler, prefixes)
    scheduler.rows[0].new.append(7)
    scheduler.add(group("a", 1))
    scheduler.preempt([])
    assert first.slot is None
    assert first.waiting[0].new == [7]
    assert step(scheduler, prefixes)[1] == 1  # its shared text is computed again


def test_a_cached_image_that_is_read_is_never_given_away() -> None:
    prefixes = PrefixCache(2)
    for key in ("a", "b"):
        slot = prefixes.reserve(())
        assert slot is not None
        prefixes.fill(key, CachedPrefix(slot, 1, 1, 1))
    assert prefixes.reserve({"a", "b"}) is None
    prefixes.use("a")
    assert prefixes.reserve(()) is not None
    assert "a" in prefixes
    assert "b" not in prefixes


def test_a_pair_shares_all_but_what_differs() -> None:
    beginning = list(range(100, 120))
    shared, start = group_sequences(4, [[1, 1, 1, 1, *beginning, 5, 9], [1, 1, 1, 1, *beginning, 6]])
    assert (shared, start) == (beginning, 24)


def test_equal_prompts_keep_a_token_of_their_own() -> None:
    prompt = list(range(30))
    assert group_sequences(4, [prompt, prompt]) == (prompt[4:29], 29)


def test_a_short_common_beginning_is_not_shared() -> None:
    assert group_sequences(4, [[1, 1, 1, 1, 5, 6, 7], [1, 1, 1, 1, 5, 8, 9]]) == ([], 4)


def planner(budget: int = 1_000_000, slots: int = 64) -> MemoryPlanner:
    return MemoryPlanner(10, budget, budget // 4, slots, 1000)


def test_slots_follow_from_the_memory_allowed() -> None:
    small, large = (planner(budget, slots=1000).sizes(300, 100, 200) for budget in (200_000, 400_000))
    assert small is not None
    assert large is not None
    assert 2 * small.slots <= large.slots + 1
    used = small.images * small.image_tokens + small.groups * small.group_tokens
    assert 10 * (used + small.slots * small.own_tokens) <= 200_000 * 1.05


def test_sizes_change_only_when_something_is_larger() -> None:
    memory = planner()
    assert memory.sizes(300, 100, 200) is not None
    assert memory.sizes(290, 90, 150) is None
    assert memory.sizes(300, 100, 500) is not None


def test_running_out_of_memory_halves_the_slots_until_enough_steps_went_well() -> None:
    memory = planner(100_000_000)
    before = memory.sizes(300, 100, 200)
    assert memory.shrink()
    after = memory.sizes(300, 100, 200)
    assert before is not None
    assert after is not None
    assert after.slots == before.slots // 2
    for _ in range(GROW_AFTER):
        memory.step_held()
    again = memory.sizes(300, 100, 200)
    assert again is not None
    assert again.slots == before.slots


def test_other_image_sizes_are_remembered_apart() -> None:
    memory = planner(100_000_000)
    memory.sizes(300, 100, 200)
    memory.shrink()
    other = memory.sizes(1000, 100, 200)
    assert other is not None
    assert other.slots == 64
