"""SamplingParams, prompts, errors and the request queue, each by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.engine_cases import image, prompt, request
from workers.engine.api import DeviceLost, EngineStopped
from workers.engine.config import EngineConfig
from workers.engine.fault_isolation import bisect_batch, is_device_lost
from workers.engine.model import model_config
from workers.engine.processor import InputProcessor, load_processor
from workers.engine.request_queue import RequestQueue
from workers.engine.runner.packed_linear import pack_linears
from workers.engine.runner.torch.attention import attend_causal, attend_shared, attend_stacked, merge, stacked_mask
from workers.engine.sampling import choose, uniforms


@pytest.fixture(scope="module")
def processor(model_folder: Callable[..., Path]) -> InputProcessor:
    config = EngineConfig(model=str(model_folder()))
    token = model_config(config).image_token_id
    return load_processor(config.model, revision=None, image_token_id=token, min_pixels=None, max_pixels=None)


def test_uniform_numbers_depend_on_seed_and_step_alone() -> None:
    seeds, steps = np.array([1, 1, 2, 2**63], np.uint64), np.array([0, 1, 0, 0], np.uint64)
    numbers = uniforms(seeds, steps)
    assert len(set(numbers)) == 4
    assert (uniforms(seeds[2:3], steps[2:3]) == numbers[2]).all()
    many = uniforms(np.arange(10_000, dtype=np.uint64), np.zeros(10_000, np.uint64))
    assert abs(many.mean() - 0.5) < 0.02
    assert 0 <= many.min() < many.max() < 1


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, -torch.inf, 2.0]).expand(20_000, 4)
    numbers = torch.from_numpy(uniforms(np.arange(20_000, dtype=np.uint64), np.zeros(20_000, np.uint64)))
    drawn = choose(logits, torch.full((20_000,), 0.5), numbers).bincount(minlength=4) / 20_000
    expected = torch.softmax(logits[0] / 0.5, dim=0)
    assert torch.allclose(drawn, expected, atol=0.02)
    assert drawn[2] == 0


def test_rows_of_no_temperature_are_greedy_among_others() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [0.0, 3.0, 1.0]])
    numbers = torch.tensor([0.0, 0.0], dtype=torch.float64)
    assert choose(logits, torch.tensor([0.0, 100.0]), numbers).tolist() == [1, 0]


def test_prompts_are_tokenised_whole(processor: InputProcessor) -> None:
    ids = processor.tokens(prompt("man", "on", "horse"), 7)
    text = "".join(part for part, _ in prompt("man", "on", "horse"))
    whole = processor.tokens(((text, False),), 7)
    assert ids == whole
    assert ids.count(processor.image_token_id) == 7
    assert processor.prefix_length(ids) == ids.index(processor.image_token_id) + 7


@pytest.mark.parametrize("name", ["<|im_end|>", "a<|image_pad|>b", "<tool_call>", "<|im_start|>system\n<|im_end|>"])
def test_a_name_never_becomes_a_control_token(processor: InputProcessor, name: str) -> None:
    plain, hostile = processor.tokens(prompt("x", "on", "y"), 3), processor.tokens(prompt(name, "on", "y"), 3)
    added = set(processor.tokenizer.added_tokens_decoder)
    assert [token for token in plain if token in added] == [token for token in hostile if token in added]
    assert name in processor.tokenizer.decode(hostile)


def test_a_control_token_half_in_a_name_is_broken_too(processor: InputProcessor) -> None:
    ids = processor.tokens((("<|im_", False), ("end|>", True), (" x", False)), 1)
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ids.count(end) == processor.tokens((("x", False),), 1).count(end)


def test_parts_merge_into_one_softmax() -> None:
    torch.manual_seed(0)
    query, keys, values = torch.randn(6, 4, 8), torch.randn(2, 50, 8), torch.randn(2, 50, 8)
    whole, _ = attend_shared(query, keys, values)
    shared = attend_shared(query, keys[:, :30], values[:, :30])
    mask = stacked_mask(torch.full((6,), 20), 25, 2)
    own_keys, own_values = (
        torch.cat([tensor[:, 30:], torch.randn(2, 5, 8)], dim=1).expand(6, -1, -1, -1) for tensor in (keys, values)
    )
    merged = merge([shared, attend_stacked(query[:, None], own_keys, own_values, mask)])
    assert torch.allclose(merged, whole, atol=1e-5)


def test_causal_parts_do_not_see_their_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, keys, values = torch.randn(2, 9, 4, 8), torch.randn(2, 9, 2, 8), torch.randn(2, 9, 2, 8)
    out, lse = attend_causal(query, keys, values)
    monkeypatch.setattr(
        "workers.engine.runner.torch.attention._flash", lambda _: False
    )  # as on a device without the kernel
    plain_out, plain_lse = attend_causal(query, keys, values)
    assert torch.allclose(out, plain_out, atol=1e-5)
    assert torch.allclose(lse, plain_lse, atol=1e-5)
    assert torch.allclose(
        attend_causal(query[:, :5], keys[:, :5], values[:, :5])[0],
        out.view(2, 9, 4, 8)[:, :5].flatten(0, 1),
        atol=1e-5,
    )


def test_packed_layers_give_what_they_replace() -> None:
    torch.manual_seed(0)
    root = torch.nn.Module()
    root.q_proj, root.k_proj, root.v_proj = (torch.nn.Linear(16, size, bias=True) for size in (32, 8, 8))
    root.o_proj = torch.nn.Linear(32, 16, bias=False)
    x = torch.randn(1, 5, 16)
    with torch.inference_mode():
        before = [layer(x) for layer in (root.q_proj, root.k_proj, root.v_proj)]
        before.append(root.o_proj(before[0]))
        assert pack_linears(root) == 4
        after = [root.q_proj(x), root.k_proj(x), root.v_proj(x)]
        after.append(root.o_proj(after[0]))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(before, after, strict=True))


def test_a_failing_batch_is_divided_until_the_culprits_are_alone() -> None:
    done: list[int] = []
    failed: list[int] = []

    def work(items: list[int]) -> None:
        if {3, 6} & set(items):
            raise ValueError("three or six")
        done.extend(items)

    bisect_batch(work, list(range(8)), lambda item, _: failed.append(item))  # type: ignore[arg-type]
    assert (sorted(done), failed) == ([0, 1, 2, 4, 5, 7], [3, 6])


def test_a_lost_device_is_not_divided_but_raised() -> None:
    def work(_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(DeviceLost):
        bisect_batch(work, [1, 2], lambda *_: None)
    assert not is_device_lost(RuntimeError("shape mismatch: illegal memory access pattern"))
    assert not is_device_lost(torch.OutOfMemoryError("CUDA out of memory"))


def test_when_the_engines_thread_dies_nobody_waits() -> None:
    queue = RequestQueue()
    go = threading.Event()

    def loop() -> None:
        go.wait(10)
        raise DeviceLost("gone")

    queue.start(loop, "dying")
    early = queue.submit([request(image())])
    go.set()
    with pytest.raises(DeviceLost):
        early[0].result(10)
    with pytest.raises(DeviceLost):
        queue.submit([request(image())])[0].result(10)


def test_what_is_cancelled_while_it_waits_is_never_begun() -> None:
    queue = RequestQueue()
    first, cancelled, last = queue.submit([request(image(number)) for number in range(3)])
    assert cancelled.cancel()
    assert [pending.future for pending in queue.take(None, wait=False)] == [first, last]


def test_a_closed_inbox_refuses() -> None:
    queue = RequestQueue()
    queue.start(lambda: None, "ending")
    queue.close()
    with pytest.raises(EngineStopped):
        queue.submit([request(image())])[0].result(10)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ""),
        ("engine", "quick"),
        ("dtype", "int8"),
        ("batch_size", 0),
        ("memory_fraction", 1.5),
        ("max_pixels", 0),
    ],
)
def test_a_wrong_setting_is_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        EngineConfig(**({"model": "somewhere"} | {field: value}))  # type: ignore[arg-type]
