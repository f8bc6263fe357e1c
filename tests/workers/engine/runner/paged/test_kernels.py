"""Triton's kernels, in its interpreter, and the plain reference against float64; the formulas of their costs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from types import ModuleType

import pytest
import torch

from tests.support.interpreter import without_interpreter
from tests.support.paged_steps import Filler, PagedStep, mixed_step, paged_step
from workers.engine.api import NO_TOKEN
from workers.engine.runner.paged import ops, reference
from workers.engine.runner.paged.costs import attention_cost
from workers.engine.runner.step import DecodeToken
from workers.engine.sampling import choose


@pytest.fixture(scope="module")
def launch() -> ModuleType:
    """The kernels' launches, interpreted."""
    if (reason := without_interpreter()) is not None:
        pytest.skip(reason)
    return importlib.import_module("workers.engine.runner.paged.triton_launch")


def one_row() -> PagedStep:
    fill = Filler(600, 1)
    return paged_step([DecodeToken(1, 1, 0, fill.span(305), None, fill.blocks(30))], [])


def nothing_but_its_own() -> PagedStep:
    fill = Filler(600, 1)
    return paged_step([DecodeToken(1, 1, at, None, None, fill.blocks(at + 1)) for at in (0, 15, 16, 63, 64, 200)], [])


STEPS: dict[str, Callable[[], PagedStep]] = {
    "mixed": mixed_step,
    "no image": lambda: paged_step(
        [DecodeToken(1, 1, 40, None, Filler(600, 2).span(70), Filler(600, 9).blocks(50))], [], blocks=600
    ),
    "one row, no group": one_row,
    "its own alone": nothing_but_its_own,
    "padded": lambda: mixed_step(room=32),
    **{f"{heads} heads": partial(mixed_step, heads=heads) for heads in ((4, 4, 64), (8, 2, 128), (8, 1, 64))},
}


@pytest.mark.parametrize("name", STEPS)
def test_attention_equals_every_row_by_itself(launch: ModuleType, name: str) -> None:
    step = STEPS[name]()
    tasks, cache, exact = step.tasks, (step.keys, step.values), step.exact(0.125)
    arguments = (step.query, cache, ops.split_lists(step.lists), tasks.blocks, tasks.own_length, tasks.present, 0.125)
    for attention in (reference.attention, launch.attention):
        real = tasks.present[:, 0] > 0
        torch.testing.assert_close(attention(*arguments)[real].double(), exact[real], atol=3e-6, rtol=3e-5)


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 1.5e-2), (torch.float16, 3e-3)])
def test_attention_in_half_precision(launch: ModuleType, dtype: torch.dtype, error: float) -> None:
    step = mixed_step(dtype=dtype)
    tasks, lists = step.tasks, ops.split_lists(step.lists)
    out = launch.attention(
        step.query, (step.keys, step.values), lists, tasks.blocks, tasks.own_length, tasks.present, 0.125
    )
    torch.testing.assert_close(out.double(), step.exact(0.125), atol=error, rtol=error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_other_kernels_equal_the_reference(launch: ModuleType, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    error = 1e-5 if dtype == torch.float32 else 3e-2  # of the interpreter, which truncates to bfloat16
    close = partial(torch.testing.assert_close, atol=error, rtol=error)
    x, residual, weight = torch.randn(5, 96).to(dtype), torch.randn(5, 96).to(dtype), torch.randn(96).to(dtype)
    for before in (None, residual):
        for ours, plain in zip(
            launch.add_rms_norm(x, before, weight, 1e-6), reference.add_rms_norm(x, before, weight, 1e-6), strict=True
        ):
            close(ours, plain)
    gate_up = torch.randn(3, 2 * 1500).to(dtype)
    close(launch.silu_mul(gate_up), reference.silu_mul(gate_up))
    heads, kv_heads, size = 8, 2, 16
    qkv, rotary = (
        torch.randn(5, (heads + 2 * kv_heads) * size).to(dtype),
        torch.randn(2, 5, size // 2).repeat(1, 1, 2).to(dtype),
    )
    where = torch.tensor([[3, 1, 1, 2, 0], [0, 5, 6, 15, 0]], dtype=torch.int32)
    for norms in ((None, None), (torch.randn(size).to(dtype), torch.randn(size).to(dtype))):
        found = []
        for rotate in (launch.rotate_and_store, reference.rotate_and_store):
            cache = (torch.zeros(4, kv_heads, 16, size, dtype=dtype), torch.zeros(4, kv_heads, 16, size, dtype=dtype))
            found.append((rotate(qkv, norms, 1e-6, rotary, cache, where), *cache))
        for ours, plain in zip(*found, strict=True):
            close(ours, plain)


@pytest.mark.parametrize("vocabulary", [1280, 9000])
def test_tokens_are_drawn_as_on_a_cpu(launch: ModuleType, vocabulary: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(9, vocabulary) * 3
    temperatures = torch.tensor([0, 0.1, 1, 0.5, 1, 1, 2, 0, 1])
    numbers = torch.rand(9, dtype=torch.float64)
    numbers[4:6] = torch.tensor([0, 1 - 2**-53])  # the ends
    logits[2, 7], logits[3, vocabulary - 1], logits[7, 0] = torch.nan, torch.inf, torch.nan  # no token
    logits[8, 5:] = -torch.inf
    drawn = launch.sample(logits, temperatures, numbers)
    assert [at for at, token in enumerate(drawn.tolist()) if token == NO_TOKEN] == [2, 3, 7]
    assert drawn.tolist() == choose(logits, temperatures, numbers).tolist()


def test_the_cost_of_attention_is_what_its_task_list_says() -> None:
    step = mixed_step()
    spans = {(int(blocks[0]), id(blocks)): 0 for spans in step.seen for blocks, _ in spans}
    pairs = 0
    for row in step.seen:
        for blocks, length in row:
            key = (int(blocks[0]), id(blocks))
            spans[key] = max(spans[key], length)
            pairs += length
    cost = attention_cost(step.tasks, 8, 2, 64, 4)
    keys_and_values = 2 * sum(spans.values()) * 2 * 64 * 4
    assert keys_and_values < cost.bytes < 1.6 * keys_and_values + 10 * len(step.seen) * 8 * 64 * 4
    assert cost.flops >= 4 * pairs * 8 * 64
    assert cost.flops <= 1.2 * 4 * pairs * 8 * 64  # a causal tile is computed whole


def test_lists_lie_as_kernels_step_through_them() -> None:
    for step in (mixed_step(), mixed_step(room=32), one_row()):
        assert all(tensor.is_contiguous() for tensor in step.tasks.tensors())


def test_operators_are_registered_as_torch_wants_them() -> None:
    step = mixed_step()
    tasks = step.tasks
    x = torch.randn(3, 32)
    torch.library.opcheck(ops.add_rms_norm, (x, x, x[0], 1e-6))
    torch.library.opcheck(ops.silu_mul, (x,))
    arguments = (step.query, step.keys, step.values, step.lists, tasks.blocks, tasks.own_length, tasks.present, 0.1)
    torch.library.opcheck(ops.attention, arguments)
    where = torch.zeros(2, 3, dtype=torch.int32)
    qkv, rotary = torch.randn(3, 12 * 64), torch.randn(2, 3, 64)
    torch.library.opcheck(ops.rotate_and_store, (qkv, None, None, 1e-6, rotary, step.keys, step.values, where))
