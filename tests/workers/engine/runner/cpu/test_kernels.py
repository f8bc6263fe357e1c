"""The compiled CPU kernels against the same arithmetic in torch, and what happens where they cannot be compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from workers.engine.runner.cpu.cpu_backend import BLOCK, make_cpu_batch
from workers.engine.runner.cpu.kernels import Heads, Kernels, load_kernels
from workers.engine.runner.kv_cache import KVCache, KVShape
from workers.engine.runner.step import DecodeToken, KVCacheSizes, KVCacheSlots, KVSpan, PrefillChunk

EPS = 1e-6


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    found = load_kernels()
    if found is None:
        pytest.skip("no C compiler here")
    return found


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def _threads(request: pytest.FixtureRequest) -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def test_norm_and_gate(kernels: Kernels) -> None:
    x, weight = torch.randn(37, 72) * 3, torch.randn(72)
    expected = weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)
    torch.testing.assert_close(kernels.rms_norm(x[None], weight, EPS)[0], expected, atol=1e-5, rtol=1e-5)
    both = torch.cat([torch.randn(9, 40) * 20, torch.randn(9, 40)], dim=1)
    both[0, :4] = torch.tensor([-200.0, 200.0, 0.0, -88.0])
    expected = silu(both[:, :40]) * both[:, 40:]
    torch.testing.assert_close(kernels.silu_mul(both), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 2, 16), (8, 4, 64), (8, 2, 128), (3, 1, 48), (2, 2, 64)])
def test_attention_over_three_levels(kernels: Kernels, heads: int, kv_heads: int, size: int) -> None:
    torch.manual_seed(heads * size)
    shape = KVShape(1, kv_heads, size, torch.float32, torch.device("cpu"))
    kept, plain = KVCache(shape, block=BLOCK), KVCache(shape)
    for cache in (kept, plain):
        cache.resize(KVCacheSizes(2, 96, 30, 64, 64), KVCacheSlots((), (), ()))
    for mine, theirs in ((kept.images, plain.images), (kept.groups, plain.groups), (kept.sequences, plain.sequences)):
        theirs.keys[0].normal_()
        theirs.values[0].normal_()
        mine.keys[0].copy_(in_blocks(theirs.keys[0]))
        mine.values[0].copy_(theirs.values[0])
    rows = [
        DecodeToken(
            1, 0, at, KVSpan(slot % 2, 33 + 50 * (slot % 2)), KVSpan(slot % 3, 20 + slot % 3) if slot % 4 else None
        )
        for slot, at in enumerate([0, 5, 15, 16, 17, 40, 63, 3, 31, 32, 33, 1, 60, 60, 2, 7, 9, 11, 20])
    ]
    chunks = [
        PrefillChunk(list(range(21)), 0, KVSpan(1, 83), KVSpan(1, 21), 20, shared=False),
        PrefillChunk([5], 0, KVSpan(0, 33), None, 21, shared=False),
        PrefillChunk(list(range(33)), 0, KVSpan(0, 33), None, 3, shared=True),
    ]
    step = make_cpu_batch(rows, chunks, kept)
    count = len(step.spans)
    qkv = torch.randn(count, (heads + 2 * kv_heads) * size)
    angle = torch.rand(count, size // 2) * 6
    rotary = torch.cat([angle, angle], dim=1).cos(), torch.cat([angle, angle], dim=1).sin()
    told = Heads(heads, torch.rand(size) + 0.5, torch.rand(size) + 0.5, EPS, 0.3)
    expected = reference(qkv.clone(), rotary, told, plain, step.spans)
    got = kernels.attention(qkv, rotary, told, *kept.layer(0), step.spans)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)
    for mine, theirs in ((kept.groups, plain.groups), (kept.sequences, plain.sequences)):
        torch.testing.assert_close(mine.keys[0], in_blocks(theirs.keys[0]), atol=1e-5, rtol=1e-5)
        assert torch.equal(mine.values[0], theirs.values[0])


def load_with(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Ask for the kernels in a process of its own whose cache is ``folder``."""
    code = "from workers.engine.runner.cpu.kernels import load_kernels; print(load_kernels() is not None)"
    env = os.environ | {"XDG_CACHE_HOME": str(folder)} | environment
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)


@pytest.mark.usefixtures("kernels")
def test_the_library_is_compiled_once(tmp_path: Path) -> None:
    assert load_with(tmp_path).stdout == "True\n"
    [library] = (tmp_path / "relation-farm").iterdir()
    assert library.suffix == ".so"
    assert load_with(tmp_path, PATH="").stdout == "True\n", "found again without a compiler"
    (tmp_path / "relation-farm").chmod(0o777)
    assert load_with(tmp_path, PATH="").stdout == "False\n", "not from where others may write"
    assert load_with(tmp_path).stdout == "True\n", "but compiled for the process alone"
    assert list((tmp_path / "relation-farm").iterdir()) == [library]


def test_without_a_compiler_the_reason_is_said(tmp_path: Path) -> None:
    for compiler, reason in (("/nowhere/cc", "/nowhere/cc"), ("false", "exit status 1")):
        done = load_with(tmp_path, CC=compiler)
        assert done.stdout == "False\n"
        assert "cannot be compiled" in done.stderr
        assert reason in done.stderr


def in_blocks(keys: Tensor) -> Tensor:
    """Keys (slots, heads, capacity, size) as the kernels keep them."""
    slots, heads, capacity, size = keys.shape
    blocks = keys.view(slots, heads, capacity // BLOCK, BLOCK, size).transpose(3, 4)
    return blocks.reshape(slots, heads, capacity, size)


def reference(qkv: Tensor, rotary: tuple[Tensor, Tensor], told: Heads, cache: KVCache, spans: np.ndarray) -> Tensor:
    """Token by token; stores keys and values first."""
    levels, heads = (cache.images, cache.groups, cache.sequences), told.count
    kv_heads, size = levels[0].keys[0].shape[1], levels[0].keys[0].shape[3]
    each = qkv.view(len(spans), heads + 2 * kv_heads, size)

    def placed(x: Tensor, weight: Tensor, at: int) -> Tensor:
        x = weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)
        turned = torch.cat([-x[:, size // 2 :], x[:, : size // 2]], dim=1)
        return x * rotary[0][at] + turned * rotary[1][at]

    for at, (stack, slot, length, *_) in enumerate(spans.tolist()):
        levels[stack].keys[0][slot, :, length - 1] = placed(each[at, heads : heads + kv_heads], told.key_norm, at)
        levels[stack].values[0][slot, :, length - 1] = each[at, heads + kv_heads :]
    out = []
    for at, (stack, slot, length, group, group_length, image, image_length) in enumerate(spans.tolist()):
        runs = ((0, image, image_length), (1, group, group_length), (stack, slot, length))
        keys = torch.cat([levels[s].keys[0][i, :, :n] for s, i, n in runs], dim=1)
        values = torch.cat([levels[s].values[0][i, :, :n] for s, i, n in runs], dim=1)
        keys, values = (each.repeat_interleave(heads // kv_heads, 0) for each in (keys, values))
        query = placed(each[at, :heads], told.query_norm, at) * told.scaling
        weights = (keys @ query[:, :, None])[..., 0].softmax(-1)
        out.append((weights[:, None] @ values)[:, 0].flatten())
    return torch.stack(out)
