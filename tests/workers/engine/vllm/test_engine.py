"""The vLLM engine's own part, over a stand-in for vLLM: what it is given and in which order, and what goes wrong.

The real one passes the contract suite wherever vLLM is installed (``make test-vllm``).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL.Image import Image

from tests.support.engine_cases import image, request
from workers.engine.api import (
    Completion,
    DeviceLost,
    ImageSource,
    ImageUnreadable,
    PromptTooLong,
    Request,
    SamplingParams,
)
from workers.engine.config import EngineConfig
from workers.engine.load import load_qwen_processor
from workers.engine.model import model_config
from workers.engine.vllm.core import Finished
from workers.engine.vllm.engine import AHEAD, VllmEngine

WAIT_S = 30


class StandIn:
    """Ends every request with three tokens, one step after it came; ``hold`` keeps steps from ending any."""

    slots = 4

    def __init__(self) -> None:
        self.rendered: list[str] = []
        self.added: dict[str, Any] = {}
        self.hold = threading.Event()
        self.hold.set()
        self.broken = self.closed = False
        self.threads: dict[str, str] = {}

    def render(self, ids: list[int], source: ImageSource, image: Image) -> Any:
        self.threads["render"] = threading.current_thread().name
        if source.key == "odd":
            raise ValueError("absolute aspect ratio must be smaller than 200")
        self.rendered.append(source.key)
        return {"prompt_token_ids": ids}

    def add(self, name: str, rendered: Any, sampling: SamplingParams, candidates: Sequence[int]) -> None:
        self.threads["add"] = threading.current_thread().name
        self.added[name] = rendered

    def step(self) -> list[Finished]:
        self.threads["step"] = threading.current_thread().name
        if self.broken:
            raise RuntimeError("engine core died")
        if not self.hold.wait(0.01):
            return []
        done = [
            Finished(name, [300, 301, 2], True, len(one["prompt_token_ids"]), ()) for name, one in self.added.items()
        ]
        self.added.clear()
        return done

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def core() -> StandIn:
    return StandIn()


@pytest.fixture
def engine(model_folder: Callable[..., Path], core: StandIn) -> Iterator[VllmEngine]:
    config = EngineConfig(model=str(model_folder()), engine="vllm")
    running = VllmEngine(core, load_qwen_processor(config, model_config(config).image_token_id), context=1000)
    yield running
    running.close()


def done(futures: list[Future[Completion]]) -> list[Completion]:
    return [future.result(WAIT_S) for future in futures]


def test_each_request_gets_its_own_answer_without_the_end_token(engine: VllmEngine) -> None:
    completions = done(engine.submit([request(image()), request(image(1))]))
    assert [(one.tokens, one.finish_reason) for one in completions] == [(2, "stop"), (2, "stop")]


def test_an_image_is_decoded_once_and_its_requests_follow_one_another(engine: VllmEngine, core: StandIn) -> None:
    loads: Counter[str] = Counter()

    def counted(number: int) -> ImageSource:
        plain = image(number)

        def load() -> Image:
            loads[plain.key] += 1
            return plain.load()

        return replace(plain, load=load)

    sources = [counted(number) for number in range(3)]
    core.hold.clear()
    first = engine.submit([request(sources[0])])
    mixed: list[Request] = [request(source, ("man", str(at), "horse")) for at in range(2) for source in sources]
    futures = engine.submit(mixed)
    core.hold.set()
    done(first + futures)
    keys = core.rendered[1:]
    assert loads == {source.key: 1 for source in sources}
    assert keys == sorted(keys, key=[source.key for source in sources].index)


def test_prompts_are_made_outside_the_engines_thread(engine: VllmEngine, core: StandIn) -> None:
    done(engine.submit([request(image())]))
    assert core.threads == {"render": "vllm-feed", "add": "vllm-engine", "step": "vllm-engine"}


def test_vllm_is_never_given_more_than_twice_what_it_runs_and_the_rest_can_be_cancelled(
    engine: VllmEngine, core: StandIn
) -> None:
    core.hold.clear()
    futures = engine.submit([request(image(), ("man", str(at), "horse")) for at in range(40)])
    cancelled = [future for future in futures[AHEAD * core.slots :] if future.cancel()]
    core.hold.set()
    done([future for future in futures if future not in cancelled])
    assert len(cancelled) == 40 - AHEAD * core.slots
    assert len(core.rendered) == AHEAD * core.slots


def test_what_vllm_refuses_fails_alone(engine: VllmEngine) -> None:
    odd = replace(image(), key="odd")
    long, bad, good = engine.submit([request(image(), tokens=5000), request(odd), request(image())])
    assert good.result(WAIT_S).tokens == 2
    with pytest.raises(PromptTooLong):
        long.result(WAIT_S)
    with pytest.raises(ImageUnreadable, match="aspect ratio"):
        bad.result(WAIT_S)


def test_refused_requests_leave_their_room_to_others(engine: VllmEngine) -> None:
    for future in engine.submit([request(image(), tokens=5000) for _ in range(50)]):
        with pytest.raises(PromptTooLong):
            future.result(WAIT_S)
    assert done(engine.submit([request(image())]))


def test_when_vllm_dies_the_device_is_lost_and_the_process_must_end(engine: VllmEngine, core: StandIn) -> None:
    core.broken = True
    for _ in range(2):
        with pytest.raises(DeviceLost):
            engine.submit([request(image())])[0].result(WAIT_S)


def test_closing_ends_vllm_too(engine: VllmEngine, core: StandIn) -> None:
    engine.close()
    assert core.closed
