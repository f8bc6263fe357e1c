"""How large the KV cache is."""

from __future__ import annotations

from workers.engine.packed.memory_planner import GROW_AFTER, MemoryPlanner


def planner(budget: int = 1_000_000, slots: int = 64) -> MemoryPlanner:
    return MemoryPlanner(10, budget, budget // 4, slots, 1000)


def test_slots_follow_from_the_memory_allowed() -> None:
    small, large = (planner(budget, slots=1000).sizes(300, 100, 200) for budget in (200_000, 400_000))
    assert small is not None
    assert large is not None
    assert 2 * small.slots <= large.slots + 1
    used = small.images * small.image_tokens + small.slots * small.group_tokens
    assert 10 * (used + small.slots * small.sequence_tokens) <= 200_000 * 1.05


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
        memory.step_fitted()
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
