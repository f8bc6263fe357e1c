"""The fast engine: equal to ``generate`` alone whatever shares its steps, and the economy it exists for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import FAMILIES, workload
from reference import agrees, generate_alone

from workers.engine.config import EngineConfig
from workers.engine.engine import FastEngine
from workers.engine.generation import Description, Generation
from workers.engine.inputs import QwenInputs
from workers.engine.load import load_engine, load_model, load_qwen_prompter


def fast(folder: Path, **values: object) -> FastEngine:
    engine = load_engine(EngineConfig(model=str(folder), device="cpu", **values))  # type: ignore[arg-type]
    assert isinstance(engine, FastEngine)
    return engine


def run(engine: FastEngine, pairs: list[list[Generation]]) -> list[Description]:
    """Submit pair by pair, as the tasks do, and wait for all."""
    futures = [future for pair in pairs for future in engine.submit(pair)]
    return [future.result(120) for future in futures]


def flat(pairs: list[list[Generation]]) -> list[Generation]:
    return [one for pair in pairs for one in pair]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("slots", [3, None])
def test_greedy_equals_generate_on_each_prompt_alone(
    model_folder: Callable[..., Path], family: str, slots: int | None
) -> None:
    config = EngineConfig(model=str(model_folder(family)), device="cpu")
    model = load_model(config)
    inputs = QwenInputs(load_qwen_prompter(config, model.config.image_token_id), model)
    pairs = workload(pictures=3)
    engine = fast(model_folder(family), batch_size=slots)
    descriptions = run(engine, pairs)
    engine.close()
    for one, description in zip(flat(pairs), descriptions, strict=True):
        assert agrees(description, generate_alone(model, inputs, one), inputs)
