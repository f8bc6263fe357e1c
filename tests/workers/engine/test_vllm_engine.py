"""The vLLM engine's own part, with a stand-in for vLLM: what it is given, what becomes of what it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.engine_cases import image, request
from workers.engine import vllm_engine
from workers.engine.api import EngineError, EngineStopped, PromptTooLong
from workers.engine.config import EngineConfig
from workers.engine.load import load_qwen_processor
from workers.engine.model import model_config


@dataclass
class StandIn:
    """Answers every pending with three tokens, one step after it came."""

    engine_core: Any = field(default_factory=lambda: SimpleNamespace(shutdown=lambda: None))
    pending: dict[str, Any] = field(default_factory=dict)
    broken: bool = False

    def add_request(self, name: str, prompt: dict[str, Any], params: Any) -> None:
        self.pending[name] = prompt

    def step(self) -> list[Any]:
        if self.broken:
            raise RuntimeError("engine core died")
        done = [self._output(name, prompt) for name, prompt in self.pending.items()]
        self.pending.clear()
        return done

    def _output(self, name: str, prompt: dict[str, Any]) -> Any:
        written = SimpleNamespace(finish_reason="stop", token_ids=[300, 301, 2])
        return SimpleNamespace(
            request_id=name, finished=True, outputs=[written], prompt_token_ids=prompt["prompt_token_ids"]
        )


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    monkeypatch.setattr(vllm_engine, "_start", lambda config, context: made)
    monkeypatch.setattr(vllm_engine, "_params", lambda temperature, sampling: None)
    return made


@pytest.fixture
def engine(model_folder: Callable[..., Path], stand_in: StandIn) -> Iterator[vllm_engine.VllmEngine]:
    config = EngineConfig(model=str(model_folder()), engine="vllm")
    processor = load_qwen_processor(config, model_config(config).image_token_id)
    running = vllm_engine.VllmEngine(config, processor, context=1000)
    yield running
    running.close()


def test_each_request_gets_its_own_answer_without_the_end_token(engine: vllm_engine.VllmEngine) -> None:
    described = [future.result(30) for future in engine.submit([request(image()), request(image(1))])]
    assert [(one.tokens, one.finish_reason) for one in described] == [(2, "stop"), (2, "stop")]


def test_a_prompt_beyond_the_context_is_refused_alone(engine: vllm_engine.VllmEngine) -> None:
    long, short = engine.submit([request(image(), tokens=5000), request(image())])
    assert short.result(30).tokens == 2
    with pytest.raises(PromptTooLong):
        long.result(30)


def test_when_vllm_dies_so_does_the_engine(engine: vllm_engine.VllmEngine, stand_in: StandIn) -> None:
    stand_in.broken = True
    with pytest.raises((EngineError, EngineStopped)):
        engine.submit([request(image())])[0].result(30)
    with pytest.raises((EngineError, EngineStopped)):
        engine.submit([request(image())])[0].result(30)
