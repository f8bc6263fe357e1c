"""What a padded decoding step reads follows from what its rows see, not from where it lies."""

from __future__ import annotations

import random

import pytest
import torch

from workers.engine.runner.kv_cache import KVCache, KVShape
from workers.engine.runner.step import DecodeToken, KVCacheSizes, KVCacheSlots, KVSpan
from workers.engine.runner.torch.batch import make_batch, padded_batch
from workers.engine.runner.torch.decode import fixed_shape

SIZES = KVCacheSizes(images=64, image_tokens=320, slots=256, group_tokens=128, sequence_tokens=192)


def kv_cache() -> KVCache:
    made = KVCache(KVShape(1, 2, 8, torch.float32, torch.device("cpu")))
    made.resize(SIZES, KVCacheSlots((), (), ()))
    torch.manual_seed(0)
    for stack in (made.images, made.groups, made.sequences):
        stack.keys[0].normal_()
        stack.values[0].normal_()
    return made


def rows(images: list[int], count: int) -> list[DecodeToken]:
    """Rows over these image slots, in pairs of six over group slots anywhere."""
    dice = random.Random(0)
    groups = dice.sample(range(256), -(-count // 6))
    return [
        DecodeToken(7, 400, dice.randrange(90, 120), KVSpan(images[at * len(images) // count], 305),
                    KVSpan(groups[at // 6], 100))
        for at in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("images", [[0], [63], [0, 63], [3, 17, 40], [1, 20, 30, 50, 63]])
def test_what_is_read_is_at_most_twice_what_is_seen(images: list[int]) -> None:
    decode = rows(images, 125)
    shape = fixed_shape(decode, kv_cache())
    for level, real in ((shape.images, 305 * len(images)), (shape.groups, 100 * 21)):
        assert real <= level[0] * level[2] <= 2 * real


@pytest.mark.parametrize("images", [[0], [63], [5, 63]])
def test_slots_anywhere_attend_as_they_do_one_by_one(images: list[int]) -> None:
    decode, cache = rows(images, 30), kv_cache()
    torch.manual_seed(1)
    query, key, value = torch.randn(30, 4, 8), torch.randn(30, 2, 8), torch.randn(30, 2, 8)
    expected = make_batch(decode, [], cache).attend(0, query, key, value)
    batch = padded_batch(decode, cache)
    padding = len(batch.token_ids) - 30
    padded = [torch.cat([each, each.new_zeros(padding, *each.shape[1:])]) for each in (query, key, value)]
    assert torch.allclose(batch.attend(0, *padded)[:30], expected, atol=1e-5)
