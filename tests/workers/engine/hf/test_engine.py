"""The transformers engine: equal to ``generate`` alone, isolated errors, reproducible draws, prompt endings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.engine_cases import FAMILIES, build_llava, image, request, workload
from tests.support.generate_alone import agrees, generate_alone
from workers.engine.api import EngineStopped, ImageSource, ImageUnreadable, PromptTooLong, Request
from workers.engine.config import EngineConfig
from workers.engine.hf.engine import HfEngine
from workers.engine.hf.model_inputs import QwenInputs
from workers.engine.load import load_engine, load_qwen_processor
from workers.engine.model import load_model


def config(folder: Path, **values: object) -> EngineConfig:
    return EngineConfig(model=str(folder), engine="transformers", device="cpu", batch_size=8, **values)  # type: ignore[arg-type]


@pytest.fixture
def engine(model_folder: Callable[..., Path]) -> Iterator[HfEngine]:
    running = load_engine(config(model_folder()))
    yield running  # type: ignore[misc]
    running.close()


def flat(pairs: list[list[Request]]) -> list[Request]:
    return [request for pair in pairs for request in pair]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate_on_each_prompt_alone(model_folder: Callable[..., Path], family: str) -> None:
    settings = config(model_folder(family))
    model = load_model(settings)
    inputs = QwenInputs(load_qwen_processor(settings, model.config.image_token_id), model)
    running = HfEngine(model, inputs, 5)
    wanted = flat(workload())
    completions = [future.result(60) for future in running.submit(wanted)]
    running.close()
    for one, completion in zip(wanted, completions, strict=True):
        assert agrees(completion, generate_alone(model, inputs, one), inputs)


def test_any_other_family_takes_the_transformers_engine(tmp_path: Path) -> None:
    build_llava(tmp_path)
    running = load_engine(EngineConfig(model=str(tmp_path), device="cpu"))
    assert isinstance(running, HfEngine)
    futures = running.submit([request(image(), ("man", name, "hill"), tokens=5) for name in ("on", "<|im_end|>")])
    assert [future.result(60).tokens for future in futures] == [5, 5]
    running.close()


def test_a_sampled_completion_does_not_depend_on_its_batch(engine: HfEngine) -> None:
    wanted = flat(workload(temperature=1.0))
    together = [future.result(60).text for future in engine.submit(wanted)]
    alone = [engine.submit([one])[0].result(60).text for one in wanted[:4]]
    assert alone == together[:4]
    assert len(set(together)) > len(together) // 2


def test_another_seed_draws_another_completion(engine: HfEngine) -> None:
    one = request(image(), temperature=1.0, seed=1)
    other = replace(one, sampling=replace(one.sampling, seed=2))
    first, second = (future.result(60).text for future in engine.submit([one, other]))
    assert first != second


def test_an_unreadable_image_fails_only_its_own_requests(engine: HfEngine) -> None:
    def broken() -> None:
        raise ImageUnreadable("truncated file")

    bad = request(ImageSource("broken", broken))  # type: ignore[arg-type]
    good = request(image())
    futures = engine.submit([good, bad, good])
    assert futures[0].result(60) == futures[2].result(60)
    with pytest.raises(ImageUnreadable):
        futures[1].result(60)


def test_an_image_that_the_processor_refuses_is_unreadable(engine: HfEngine) -> None:
    thin = request(image(0, (4000, 4)))
    with pytest.raises(ImageUnreadable):
        engine.submit([thin])[0].result(60)


def test_an_answer_beyond_the_context_is_refused(engine: HfEngine) -> None:
    with pytest.raises(PromptTooLong):
        engine.submit([request(image(), tokens=40_000)])[0].result(60)


def test_length_and_stop_are_told_apart(engine: HfEngine) -> None:
    cut = engine.submit([request(image(), tokens=3)])[0].result(60)
    assert (cut.finish_reason, cut.tokens) == ("length", 3)
    sampled = [request(image(), temperature=3.0, tokens=400, seed=seed) for seed in range(6)]
    ended = [future.result(120) for future in engine.submit(sampled)]
    assert "stop" in {completion.finish_reason for completion in ended}
    assert all(completion.tokens < 400 for completion in ended if completion.finish_reason == "stop")


def test_closing_fails_what_is_unfinished_and_what_comes_later(engine: HfEngine) -> None:
    running = engine.submit([request(image(), temperature=1.0, tokens=20_000)])
    engine.close()
    later = engine.submit([request(image())])
    for future in running + later:
        with pytest.raises(EngineStopped):
            future.result(60)
