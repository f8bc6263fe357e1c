"""Every engine that can be started here, for the suite that all of them pass."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from workers.engine.api import Engine
from workers.engine.config import EngineConfig
from workers.engine.load import load_engine


@dataclass(frozen=True)
class EngineAtHand:
    """How to start one kind of engine over a model folder on the CPU, and what it cannot do."""

    name: str
    start: Callable[[Path], AbstractContextManager[Engine]]
    parses_names: bool = False  # the whole prompt is parsed elsewhere: a control token in a name is refused
    exact: bool = True  # probabilities are the logits' own, not those among the likeliest alone


@contextmanager
def _local(name: str, folder: Path) -> Iterator[Engine]:
    engine = load_engine(EngineConfig(model=str(folder), engine=name, device="cpu", cpu_memory_bytes=2**30))
    try:
        yield engine
    finally:
        engine.close()


def _start_local(name: str) -> Callable[[Path], AbstractContextManager[Engine]]:
    return lambda folder: _local(name, folder)


ENGINES = [
    EngineAtHand("transformers", _start_local("transformers")),
    EngineAtHand("builtin", _start_local("builtin")),
]
if importlib.util.find_spec("vllm"):
    ENGINES.append(EngineAtHand("vllm", _start_local("vllm")))
