"""The packed engine: equal to ``generate`` alone whatever shares its steps, and the economy it exists for."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL.Image import Image

from tests.support.engine_cases import FAMILIES, image, request, workload
from tests.support.generate_alone import agrees, generate_alone
from workers.engine.api import (
    Completion,
    DeviceLost,
    EngineStopped,
    ImageSource,
    ImageUnreadable,
    PromptTooLong,
    Request,
    TooLittleMemory,
)
from workers.engine.config import EngineConfig
from workers.engine.hf.model_inputs import QwenInputs
from workers.engine.load import load_engine, load_qwen_processor
from workers.engine.model import load_model
from workers.engine.packed.engine import PackedEngine


def packed(folder: Path, **values: object) -> PackedEngine:
    engine = load_engine(EngineConfig(model=str(folder), device="cpu", **values))  # type: ignore[arg-type]
    assert isinstance(engine, PackedEngine)
    return engine


def run(engine: PackedEngine, pairs: list[list[Request]]) -> list[Completion]:
    """Submit pair by pair, as the tasks do, and wait for all."""
    futures = [future for pair in pairs for future in engine.submit(pair)]
    return [future.result(120) for future in futures]


def flat(pairs: list[list[Request]]) -> list[Request]:
    return [one for pair in pairs for one in pair]


@pytest.mark.parametrize(
    ("family", "compiled"),
    [(family, compiled) for family in FAMILIES for compiled in (None, True)]
    + [("qwen3_vl", False), ("qwen3_vl_moe", False)],
)
def test_greedy_equals_generate_on_each_prompt_alone(
    model_folder: Callable[..., Path], family: str, compiled: bool | None
) -> None:
    config = EngineConfig(model=str(model_folder(family)), device="cpu")
    model = load_model(config)
    inputs = QwenInputs(load_qwen_processor(config, model.config.image_token_id), model)
    pairs = workload(images=2)
    references = [generate_alone(model, inputs, one) for one in flat(pairs)]
    for slots in (3, None):
        engine = packed(model_folder(family), batch_size=slots, compile=compiled)
        completions = run(engine, pairs)
        engine.close()
        for completion, reference in zip(completions, references, strict=True):
            assert agrees(completion, reference, inputs)


def test_steps_of_fixed_shapes_write_the_same(model_folder: Callable[..., Path]) -> None:
    pairs = workload(images=3)
    free, fixed = packed(model_folder()), packed(model_folder(), compile=True, batch_size=10)
    assert [one.text for one in run(fixed, pairs)] == [one.text for one in run(free, pairs)]
    free.close()
    fixed.close()


def test_where_graphs_cannot_be_captured_steps_run_without(
    model_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    pairs = workload(images=2)
    free, fixed = packed(model_folder()), packed(model_folder(), compile=True)
    monkeypatch.setattr("workers.engine.runner.graphs.DirectRecorder.record", refuse)
    assert run(fixed, pairs) == run(free, pairs)
    assert sum("cannot be replayed" in record.message for record in caplog.records) == 1
    free.close()
    fixed.close()


def test_another_precision_runs(model_folder: Callable[..., Path]) -> None:
    engine = packed(model_folder(), dtype="bfloat16")
    assert all(completion.tokens for completion in run(engine, workload(images=1)))
    engine.close()


def test_images_are_encoded_once_and_slots_stay_busy(model_folder: Callable[..., Path]) -> None:
    engine = packed(model_folder(), batch_size=4)
    run(engine, workload(images=3, pairs=4))
    stats = engine.stats()
    engine.close()
    assert stats["images"] == 3
    assert stats["occupancy"] > 0.8


def test_occupancy_counts_the_slots_that_nobody_asks_for(model_folder: Callable[..., Path]) -> None:
    engine = packed(model_folder(), batch_size=100)
    run(engine, [[request(image(), tokens=12)]])
    assert engine.stats()["occupancy"] <= 0.01
    engine.close()


def test_a_sampled_completion_does_not_depend_on_what_runs_alongside_it(model_folder: Callable[..., Path]) -> None:
    pairs = workload(temperature=1.0)
    wide, narrow = packed(model_folder()), packed(model_folder(), batch_size=2)
    together = [completion.text for completion in run(wide, pairs)]
    apart = [completion.text for completion in run(narrow, list(reversed(pairs)))]
    wide.close()
    narrow.close()
    sizes = [len(pair) for pair in reversed(pairs)]
    ends = [sum(sizes[: at + 1]) for at in range(len(sizes))]
    in_order = [text for end, size in reversed(list(zip(ends, sizes, strict=True))) for text in apart[end - size : end]]
    assert together == in_order
    assert len(set(together)) > len(together) // 2


def test_a_bad_image_fails_only_its_own(model_folder: Callable[..., Path]) -> None:
    def broken() -> None:
        raise ImageUnreadable("truncated file")

    engine = packed(model_folder())
    bad, good = request(ImageSource("broken", broken)), request(image())  # type: ignore[arg-type]
    futures = engine.submit([good, bad, request(image(), ("a", "b", "c"))])
    assert futures[0].result(60).text
    assert futures[2].result(60).text
    with pytest.raises(ImageUnreadable):
        futures[1].result(60)
    engine.close()


def test_a_prompt_beyond_the_context_is_refused_alone(model_folder: Callable[..., Path]) -> None:
    engine = packed(model_folder())
    futures = engine.submit([request(image(), tokens=40_000), request(image(), tokens=4)])
    assert futures[1].result(60).tokens == 4
    with pytest.raises(PromptTooLong):
        futures[0].result(60)
    engine.close()


def no_device_memory() -> None:
    raise torch.OutOfMemoryError("injected")


@pytest.mark.parametrize(
    ("steps", "run_out"),
    [
        ((2,), no_device_memory),
        ((9, 10, 11), lambda: torch.empty(2**60)),  # the errors that the host's memory really ends with
        ((1, 4, 15), lambda: np.zeros(2**50)),
    ],
)
def test_running_out_of_memory_loses_nothing(
    model_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    steps: tuple[int, ...],
    run_out: Callable[[], object],
) -> None:
    pairs = workload()
    calm, short = packed(model_folder()), packed(model_folder())
    expected = run(calm, pairs)
    calm.close()
    step, calls = short._runner.step, iter(range(10_000))

    def failing(*arguments: object) -> object:
        if next(calls) in steps:
            run_out()
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(short._runner, "step", failing)
    assert run(short, pairs) == expected
    assert short.stats()["slots"] == 128 >> len(steps)
    short.close()


def test_after_enough_good_steps_the_engine_is_as_large_as_before(
    model_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.engine.packed.memory_planner.GROW_AFTER", 5)
    pairs = workload()
    calm, short = packed(model_folder()), packed(model_folder())
    step, calls = short._runner.step, iter(range(10_000))

    def failing(*arguments: object) -> object:
        if next(calls) in (3, 4):
            raise torch.OutOfMemoryError("injected")
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(short._runner, "step", failing)
    assert run(short, pairs) == run(calm, pairs)
    assert short.stats()["slots"] == 128
    calm.close()
    short.close()


def test_without_any_memory_each_fails_and_the_engine_lives(
    model_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise torch.OutOfMemoryError("injected")

    engine = packed(model_folder())
    with monkeypatch.context() as patch:
        patch.setattr(engine._runner, "step", failing)
        for future in engine.submit(flat(workload(images=1))):
            with pytest.raises(torch.OutOfMemoryError):
                future.result(60)
    assert run(engine, workload(images=1))
    engine.close()


@pytest.mark.parametrize("compiled", [None, True])
def test_little_memory_and_growing_demands_write_the_same(
    model_folder: Callable[..., Path], compiled: bool | None
) -> None:
    pairs = workload(images=2, pairs=2, tokens=8) + workload(images=3, pairs=2, tokens=70)
    large, small = packed(model_folder()), packed(model_folder(), cpu_memory_bytes=2**20, compile=compiled)
    expected = [completion.text for completion in run(large, pairs)]
    assert [engine_pair[0].text for engine_pair in [run(small, [pair]) for pair in pairs]] == [
        expected[sum(map(len, pairs[:at]))] for at in range(len(pairs))
    ]
    assert [completion.text for completion in run(small, pairs)] == expected
    large.close()
    small.close()


def test_what_does_not_fit_the_blocks_fails_alone(model_folder: Callable[..., Path]) -> None:
    engine = packed(model_folder(), cpu_memory_bytes=2**20, compile=True)
    large = engine.submit([request(image(), tokens=20_000)])[0]
    small = engine.submit([request(image(), ("tree", "near", "house"), tokens=4)])[0]
    with pytest.raises(TooLittleMemory, match="does not fit the KV cache"):
        large.result(60)
    assert small.result(60).tokens == 4
    engine.close()


def test_a_lost_device_fails_everything_as_such(
    model_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    engine = packed(model_folder())
    monkeypatch.setattr(engine._runner, "step", failing)
    for _ in range(2):
        with pytest.raises(DeviceLost):
            engine.submit([request(image())])[0].result(60)
    engine.close()


def test_closing_ends_within_a_step(model_folder: Callable[..., Path]) -> None:
    engine = packed(model_folder())
    futures = engine.submit([request(image(), temperature=1.0, tokens=20_000, seed=seed) for seed in range(3)])
    engine.close()
    for future in futures:
        with pytest.raises(EngineStopped):
            future.result(10)


def test_a_closed_engine_holds_no_keys_and_values(model_folder: Callable[..., Path]) -> None:
    for compiled in (None, False, True):
        engine = packed(model_folder(), compile=compiled)
        run(engine, workload(images=1))
        cache: Any = engine._runner.kv_cache
        stacks = [cache] if compiled else [cache.images, cache.groups, cache.sequences]
        tensors = [weakref.ref(stack.keys[0]) for stack in stacks]
        del stacks
        gc.collect()  # torch leaves a cycle behind at an operator's first call
        gc.disable()  # what is freed is freed by its last reference, not by the cyclic collector
        try:
            engine.close()
            assert [tensor() for tensor in tensors] == [None] * len(tensors)
        finally:
            gc.enable()


def test_the_packed_engine_refuses_other_families(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}', encoding="utf-8")
    with pytest.raises(ValueError, match="llava"):
        load_engine(EngineConfig(model=str(tmp_path), engine="builtin"))


def test_an_image_is_loaded_once_though_its_pairs_come_one_by_one(model_folder: Callable[..., Path]) -> None:
    loads = []
    plain = image(5)

    def load() -> Image:
        loads.append(1)
        return plain.load()

    engine = packed(model_folder())
    for words in (("man", "on", "horse"), ("tree", "near", "house"), ("cat", "under", "table")):
        assert engine.submit([request(ImageSource("counted", load), words)])[0].result(60).tokens
    assert (len(loads), engine.stats()["images"]) == (1, 1)
    engine.close()
