"""Blocks of a paged KV cache go to who asks, and come back."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.workers.engine.packed.test_scheduler import group
from workers.engine.packed.block_pool import BlockPool
from workers.engine.packed.prefix_cache import CachedPrefix, PrefixCache
from workers.engine.packed.scheduler import Scheduler


def paged(*images: str, blocks: int = 33, slots: int = 16) -> tuple[BlockPool, Scheduler]:
    """A scheduler over blocks of 8 tokens, 4 of them for each image."""
    pool = BlockPool(8)
    pool.resize(blocks)
    cache = PrefixCache(8, pool)
    for image in images:
        reserved = cache.reserve((), 30)
        assert reserved is not None
        cache.fill(image, CachedPrefix(reserved[0], 30, 28, 10, reserved[1]))
    return pool, Scheduler(cache, 1000, slots, prefill_apart=True)


def test_no_block_has_two_owners_and_block_0_has_none() -> None:
    dice, pool = random.Random(0), BlockPool(16)
    pool.resize(50)
    held: list[np.ndarray] = []
    for _ in range(500):
        blocks = pool.allocate(dice.randrange(1, 100))
        if blocks is None:
            pool.free(held.pop(dice.randrange(len(held))))
        else:
            held.append(blocks)
        taken = [number for each in held for number in each]
        assert len(taken) == len(set(taken)) == 49 - pool.num_free
        assert 0 not in taken


def test_who_starts_follows_from_free_blocks_and_all_come_back() -> None:
    pool, scheduler = paged("a")
    scheduler.add(group("a", 20, shared=20, suffix=5, max_tokens=19))  # 3 blocks for all, 3 for each
    started = scheduler.schedule()
    assert (len(started.shared_groups), len(started.scheduled_new)) == (1, 8)
    assert pool.num_free == 32 - 4 - 3 - 8 * 3 == 1
    while scheduler.running:
        scheduler.finish(scheduler.running[-1])
        scheduler.schedule()
    assert not scheduler.has_work
    assert pool.num_free == 32 - 4


def test_an_image_that_nobody_wants_makes_room() -> None:
    pool, scheduler = paged("a", "b", blocks=12)
    scheduler.add(group("a", 1, shared=20, suffix=5, max_tokens=19))
    assert len(scheduler.schedule().scheduled_new) == 1
    assert "b" not in scheduler._prefix_cache
    assert pool.num_free == 11 - 4 - 6


def test_prompts_start_in_batches_and_steps_decode_or_prefill() -> None:
    _, scheduler = paged("a", blocks=1000, slots=64)
    scheduler.add(group("a", 80))
    first = scheduler.schedule()
    assert (len(first.decode), len(first.scheduled_new)) == (0, 64)
    for freed in range(1, 4):
        scheduler.finish(scheduler.running[0])
        assert len(scheduler.schedule().decode) == 64 - freed
    scheduler.finish(scheduler.running[0])
    batch = scheduler.schedule()
    assert (len(batch.decode), len(batch.scheduled_new), batch.first_slot) == (0, 4, 60)


def test_what_runs_is_preempted_with_its_blocks() -> None:
    pool, scheduler = paged("a")
    scheduler.add(group("a", 3, shared=20))
    scheduler.schedule()
    assert scheduler.preempt_all() == 3
    assert pool.num_free == 28
    assert [len(batch) for batch in scheduler.isolation_batches(scheduler.waiting_for("a"))] == [3]


@pytest.mark.parametrize("tokens", [0, 500])
def test_slots_of_fixed_capacity_need_no_blocks(tokens: int) -> None:
    blocks = BlockPool().allocate(tokens)
    assert blocks is not None
    assert len(blocks) == 0
