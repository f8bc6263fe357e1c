"""A step that fails: who is at fault fails, nobody else does, and the engine goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.engine_cases import image, request, workload
from workers.engine.api import Completion, EngineStopped, ImageSource, ImageUnreadable, Request
from workers.engine.config import EngineConfig
from workers.engine.load import load_engine
from workers.engine.packed.engine import PackedEngine
from workers.engine.runner.step import DecodeToken, PrefillChunk, SamplingMetadata, StepOutput

CULPRIT = 666  # the seed by which a step knows the request at fault

Fault = Callable[[list[DecodeToken], list[PrefillChunk], SamplingMetadata], None]
Make = Callable[..., PackedEngine]


class Injected(ValueError):
    """What a step fails with."""


@pytest.fixture
def make(model_folder: Callable[..., Path]) -> Iterator[Make]:
    """Makes engines, closed in the end; ``fault`` is asked before each step."""
    made: list[PackedEngine] = []

    def engine(fault: Fault | None = None, **values: Any) -> PackedEngine:
        engine = load_engine(EngineConfig(model=str(model_folder()), device="cpu", **values))
        assert isinstance(engine, PackedEngine)
        made.append(engine)
        if fault is not None:
            inject(engine, fault)
        return engine

    yield engine
    for engine_ in made:
        engine_.close()


def inject(engine: PackedEngine, fault: Fault) -> None:
    step = engine._runner.step

    def failing(*arguments: Any) -> StepOutput:
        fault(*arguments)
        return step(*arguments)

    engine._runner.step = failing  # type: ignore[method-assign, assignment]


def by_seed(_: object, __: object, sampling: SamplingMetadata) -> None:
    if CULPRIT in sampling.seeds:
        raise Injected


def four_alone(seeds: tuple[int, ...] = (CULPRIT, 1, 2, 3)) -> list[Request]:
    """Requests that share nothing but their image."""
    words = (("man", "on", "horse"), ("tree", "near", "house"), ("cat", "under", "table"), ("dog", "by", "wall"))
    return [request(image(), each, seed=seed, tokens=8) for each, seed in zip(words, seeds, strict=True)]


def submitted(engine: PackedEngine, requests: list[Request]) -> list[Future[Completion]]:
    """One future each, every request a submit of its own."""
    return [engine.submit([one])[0] for one in requests]


def outcomes(futures: list[Future[Completion]]) -> list[object]:
    """The descriptions, and the type of error where there is none."""
    return [type(error) if (error := future.exception(60)) else future.result() for future in futures]


def expected(make: Make, requests: list[Request], *culprits: int) -> list[object]:
    """What a step without faults writes, but for the requests of these numbers."""
    written = outcomes(submitted(make(), requests))
    return [Injected if at in culprits else one for at, one in enumerate(written)]


@pytest.mark.parametrize("seeds", [(CULPRIT, 1, 2, 3), (1, 2, CULPRIT, 3), (1, CULPRIT, 2, CULPRIT), (CULPRIT,) * 4])
def test_culprits_fail_and_nobody_else(make: Make, seeds: tuple[int, ...]) -> None:
    requests = four_alone(seeds)
    culprits = [at for at, seed in enumerate(seeds) if seed == CULPRIT]
    assert outcomes(submitted(make(by_seed), requests)) == expected(make, requests, *culprits)


def test_a_culprit_in_the_midst_of_its_answer_fails_alone(make: Make) -> None:
    def fault(_: object, __: object, sampling: SamplingMetadata) -> None:
        if any(seed == CULPRIT and step >= 3 for seed, step in zip(sampling.seeds, sampling.steps, strict=True)):
            raise Injected

    pairs = workload(images=2)
    requests = [*four_alone(), *(one for pair in pairs for one in pair)]
    assert outcomes(submitted(make(fault), requests)) == expected(make, requests, 0)


def test_a_culprit_in_what_a_pair_shares_fails_that_pair_alone(make: Make) -> None:
    engine = make()
    poison = engine._processor.tokenizer("%", add_special_tokens=False)["input_ids"][-1]

    def fault(_: object, prefill: list[PrefillChunk], __: object) -> None:
        if any(poison in chunk.token_ids for chunk in prefill):
            raise Injected

    good = [[request(image(), ("man", verb, name), tokens=8) for verb in ("on", "near", "by")] for name in "abc"]
    bad = [request(image(), ("50%", verb, "horse"), tokens=8) for verb in ("on", "near", "by")]
    written = [outcomes(engine.submit(pair)) for pair in good]
    inject(engine, fault)
    futures = [engine.submit(pair) for pair in (good[0], bad, good[1], good[2])]
    assert [outcomes(each) for each in futures] == [written[0], [Injected] * 3, written[1], written[2]]
    assert outcomes(engine.submit(good[0])) == written[0]


@pytest.mark.parametrize("short", [2, 3, 4])
def test_memory_that_runs_out_while_the_culprit_is_sought_fails_nobody_else(make: Make, short: int) -> None:
    calls = iter(range(1, 10_000))

    def fault(*step: Any) -> None:
        if next(calls) == short:
            raise torch.OutOfMemoryError("injected")
        by_seed(*step)

    requests = four_alone()
    assert outcomes(submitted(make(fault), requests)) == expected(make, requests, 0)


def test_a_step_that_fails_only_as_a_whole_fails_nobody_and_goes_on(make: Make) -> None:
    def fault(decode: list[DecodeToken], prefill: list[PrefillChunk], _: object) -> None:
        if len(decode) + len(prefill) > 2:
            raise Injected

    requests = four_alone((0, 1, 2, 3))
    assert outcomes(submitted(make(fault), requests)) == expected(make, requests)


def test_a_step_that_fails_once_fails_nobody(make: Make) -> None:
    calls = iter(range(10_000))

    def fault(*_: object) -> None:
        if next(calls) == 4:
            raise Injected

    requests = four_alone()
    assert outcomes(submitted(make(fault), requests)) == expected(make, requests)


def test_a_request_that_ends_while_the_culprit_is_sought_changes_nothing(make: Make) -> None:
    futures: list[Future[Completion]] = []

    def fault(*step: Any) -> None:
        if futures and not futures[1].done():
            futures[1].set_exception(Injected())  # as a caller that gives up
        by_seed(*step)

    engine, requests = make(fault), four_alone()
    futures += submitted(engine, requests)
    assert outcomes(futures) == expected(make, requests, 0, 1)
    assert engine._scheduler.running == []
    assert not engine._scheduler.has_work


def test_closing_does_not_wait_until_the_culprit_is_found(make: Make) -> None:
    engine = make()
    calls: list[int] = []
    closing = threading.Thread(target=engine.close)

    def fault(*_: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            closing.start()
            while not engine._queue.stopping:
                pass
        raise Injected

    inject(engine, fault)
    futures = engine.submit(four_alone())
    assert outcomes(futures) == [EngineStopped] * 4
    assert len(calls) == 2


def test_an_answer_that_cannot_be_decoded_fails_alone(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, requests = make(), four_alone()
    written = expected(make, requests)
    text = engine._processor.text
    decoded = iter(range(10_000))

    def failing(ids: list[int]) -> str:
        if next(decoded) == 1:
            raise Injected
        return text(ids)

    monkeypatch.setattr(engine._processor, "text", failing)
    found = outcomes(submitted(engine, requests))
    assert found.count(Injected) == 1
    assert [one for one in found if one is not Injected] == [
        other for one, other in zip(found, written, strict=True) if one is not Injected
    ]


def over_sizes() -> list[Request]:
    """Requests over three images, of which the second has another shape than the others."""
    return [request(image(0, size), tokens=6) for size in ((160, 120), (160, 160), (320, 240))]


def fail_encoding(engine: PackedEngine, over: ImageSource, error: Exception) -> None:
    """Let the encoding of images shaped like this one fail."""
    encode, tokens = engine._runner.encode, engine._processor.pixels(over).tokens

    def failing(ids: list[int], pixels: Any, span: Any) -> int:
        if pixels.tokens == tokens:
            raise error
        return encode(ids, pixels, span)

    engine._runner.encode = failing  # type: ignore[method-assign, assignment]


SMALLEST = {"batch_size": 1, "prefix_cache_bytes": 1}  # one slot, one image


def test_memory_that_is_short_for_one_request_fails_that_request_alone(make: Make) -> None:
    def fault(_: object, __: object, sampling: SamplingMetadata) -> None:
        if CULPRIT in sampling.seeds:
            raise torch.OutOfMemoryError("injected")

    requests = [request(image(at), seed=seed, tokens=6) for at, seed in enumerate((1, CULPRIT, 2))]
    found = outcomes(submitted(make(fault, **SMALLEST), requests))
    assert found[1] is torch.OutOfMemoryError
    assert [found[0], found[2]] == expected(make, [requests[0], requests[2]])


def test_memory_that_is_short_for_one_image_fails_that_image_alone(make: Make) -> None:
    engine = make(**SMALLEST)
    requests = over_sizes()
    fail_encoding(engine, requests[1].image, torch.OutOfMemoryError("injected"))
    found = outcomes(submitted(engine, requests + requests[1:2]))
    assert found[1] is found[3] is torch.OutOfMemoryError
    assert [found[0], found[2]] == expected(make, [requests[0], requests[2]])


def test_memory_that_is_short_for_a_long_answer_fails_that_request_alone(make: Make) -> None:
    engine = make(**SMALLEST)
    resize = engine._runner.resize_kv_cache

    def failing(sizes: Any, keep: Any) -> None:
        if sizes.sequence_tokens > 1000:
            raise MemoryError("injected")
        resize(sizes, keep)

    engine._runner.resize_kv_cache = failing  # type: ignore[method-assign, assignment]
    requests = [request(image(), tokens=tokens) for tokens in (6, 2000, 7)]
    found = outcomes(engine.submit(requests))
    assert found[1] is MemoryError
    assert [found[0], found[2]] == expected(make, [requests[0], requests[2]])


def test_an_image_that_cannot_be_encoded_fails_what_asks_about_it_alone(make: Make) -> None:
    engine, requests = make(), over_sizes()
    fail_encoding(engine, requests[1].image, Injected())
    assert outcomes(submitted(engine, requests)) == expected(make, requests, 1)


def test_an_unreadable_image_is_loaded_once_however_many_ask_about_it(make: Make) -> None:
    loads = []

    def load() -> Any:
        loads.append(1)
        raise ImageUnreadable("truncated file")

    over = ImageSource("broken", load)
    futures = make().submit([request(over, ("man", verb, "horse")) for verb in ("on", "by", "near", "under")])
    assert outcomes(futures) == [ImageUnreadable] * 4
    assert loads == [1]
