"""Decoding steps are replayed, all of them, under a graph's rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu_fake_graph import FakeGraphs, GraphError
from tests.support.engine_cases import image, request, workload
from workers.engine.api import Request
from workers.engine.config import EngineConfig
from workers.engine.load import load_engine
from workers.engine.packed.engine import PackedEngine
from workers.engine.runner.paged.batch import shapes_up_to

WORDS = (("man", "on", "horse"), ("man", "near", "horse"), ("man", "by", "horse"))
CASES = {
    "one row": [[request(image(), tokens=12)]],
    "one pair": [[request(image(), words, tokens=12) for words in WORDS]],
    "one image": workload(images=1),
    "several images": workload(images=3),
}


def replaying(folder: Path, graphs: FakeGraphs) -> PackedEngine:
    """An engine whose decoding steps are held to a graph's rules."""
    engine = load_engine(EngineConfig(model=str(folder), device="cpu", compile=True))
    assert isinstance(engine, PackedEngine)
    engine._runner._backend._graphs._recorder = graphs  # type: ignore[attr-defined]
    return engine


def run(engine: PackedEngine, pairs: list[list[Request]]) -> list[str]:
    futures = [future for pair in pairs for future in engine.submit(pair)]
    return [future.result(120).text for future in futures]


@pytest.mark.parametrize("paged", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_all_decoding_steps_are_replayed(
    model_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, case: str, paged: bool
) -> None:
    if not paged:  # as where the fused operators do not fit
        monkeypatch.setattr("workers.engine.load.paged_backend", lambda *_, **__: None)
    engine, plain = (
        replaying(model_folder(), FakeGraphs()),
        load_engine(EngineConfig(model=str(model_folder()), device="cpu")),
    )
    texts = run(engine, CASES[case])
    decoding: list[int] = []
    step = engine._runner.step

    def counted(*arguments: Any) -> Any:
        decoding.append(not arguments[1])
        return step(*arguments)

    engine._runner.step = counted  # type: ignore[method-assign, assignment]
    before = engine.stats()["replayed"]
    assert run(engine, CASES[case]) == texts == run(plain, CASES[case])  # type: ignore[arg-type]
    stats = engine.stats()
    assert stats["replayed"] - before == sum(decoding) > 0
    assert stats["refused_captures"] == 0
    for each in (engine, plain):
        each.close()


def test_graphs_are_captured_at_the_start_and_never_again(model_folder: Callable[..., Path]) -> None:
    graphs = FakeGraphs()
    engine = replaying(model_folder(), graphs)
    engine._runner._backend._capture_at_start = True  # type: ignore[attr-defined]
    run(engine, CASES["several images"])
    stats = engine.stats()
    assert graphs.captures == stats["captured"] == len(shapes_up_to(128)) == 9
    assert stats["replayed"] > stats["captured"]
    engine.close()


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "qwen2_5_vl"])
def test_other_families_are_replayed_too(model_folder: Callable[..., Path], family: str) -> None:
    engine = replaying(model_folder(family), FakeGraphs())
    run(engine, CASES["one pair"])
    assert engine.stats()["replayed"] == 11
    engine.close()


def test_the_fake_graph_fails_at_what_a_graph_cannot_do() -> None:
    x, elsewhere = torch.ones(4), torch.ones(4)
    place = [x]

    def replay_after(change: Callable[[], None], step: Callable[[], Any]) -> None:
        replay = FakeGraphs().record(step)
        replay()
        change()
        replay()

    def moved() -> None:
        place[0] = elsewhere

    def reshaped() -> None:
        place[0] = x.view(2, 2)

    for change in (moved, reshaped):
        place[0] = x
        with pytest.raises(GraphError, match="captured was"):
            replay_after(change, lambda: place[0] + 1)
    for step in (lambda: float(x.sum()), lambda: x[x > 0], x.nonzero):
        with pytest.raises(GraphError, match="waits for the device"):
            FakeGraphs().record(step)


def test_a_step_whose_tensors_cannot_be_copied_into_raises(model_folder: Callable[..., Path]) -> None:
    """Only what refuses the capture turns graphs off: any other error is one of ours."""
    engine = replaying(model_folder(), FakeGraphs())
    run(engine, CASES["one row"])
    graphs: Any = engine._runner._backend._graphs  # type: ignore[attr-defined]

    class Broken:
        shape, rows, padded_rows = next(iter(graphs._graphs)), 1, 1

        def tensors(self) -> list[Tensor]:
            return [torch.zeros(3, 3, 3)]

    with pytest.raises((RuntimeError, ValueError)):
        graphs(Broken())
    assert graphs.usable
    engine.close()
