"""Every engine that can be started here, for the suite that all of them pass."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.support.chat_server import MODEL, ChatServer, Likeliest
from workers.engine.api import Engine, Request
from workers.engine.config import EngineConfig
from workers.engine.hf.model_inputs import QwenInputs
from workers.engine.load import load_engine, load_qwen_processor
from workers.engine.model import load_model
from workers.engine.openai.engine import OpenAIEngine, ServerConfig


@dataclass(frozen=True)
class EngineAtHand:
    """How to start one kind of engine over a model folder on the CPU, and what it cannot do."""

    name: str
    start: Callable[[Path], AbstractContextManager[Engine]]
    parses_names: bool = False  # the whole prompt is parsed elsewhere: a control token in a name is refused
    exact: bool = True  # probabilities are the logits' own, not those among the likeliest alone


@contextmanager
def _local(name: str, folder: Path) -> Iterator[Engine]:
    compiled = False if name == "vllm" else None  # its compiler takes a minute for each model
    config = EngineConfig(model=str(folder), engine=name, device="cpu", cpu_memory_bytes=2**30, compile=compiled)
    engine = load_engine(config)
    try:
        yield engine
    finally:
        engine.close()


def _start_local(name: str) -> Callable[[Path], AbstractContextManager[Engine]]:
    return lambda folder: _local(name, folder)


@contextmanager
def _over_a_server(folder: Path) -> Iterator[Engine]:
    """The engine of a chat server: ours, over the builtin engine."""
    with _local("builtin", folder) as behind:
        server = ChatServer(behind, likeliest=likeliest_tokens(folder))
        engine = OpenAIEngine(ServerConfig(base_url=server.url, model=MODEL))
        try:
            yield engine
        finally:
            engine.close()
            server.stop()


@contextmanager
def _over_vllms_server(folder: Path) -> Iterator[Engine]:
    """The engine of a chat server: vLLM's own, what ``vllm serve`` starts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port),
               "--served-model-name", MODEL, "--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager",
               "--max-num-seqs", "64", "--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192"]  # fmt: skip
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        engine = OpenAIEngine(ServerConfig(base_url=f"http://127.0.0.1:{port}/v1", model=MODEL))  # waits until it is up
        try:
            yield engine
        finally:
            engine.close()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def likeliest_tokens(folder: Path) -> Likeliest:
    """Gives the 20 likeliest first tokens of a request and their probabilities, by the model in plain transformers."""
    config = EngineConfig(model=str(folder), device="cpu")
    model = load_model(config)
    inputs = QwenInputs(load_qwen_processor(config, model.config.image_token_id), model)

    def likeliest(request: Request) -> list[tuple[str, float]]:
        with torch.inference_mode():
            chances = model(**inputs.inputs(request)).logits[0, -1].softmax(-1)
        best = chances.topk(20)
        return [
            (inputs.text([token]), chance)
            for token, chance in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    return likeliest


ENGINES = [
    EngineAtHand("transformers", _start_local("transformers")),
    EngineAtHand("builtin", _start_local("builtin")),
    EngineAtHand("openai", _over_a_server, parses_names=True, exact=False),
]
if importlib.util.find_spec("vllm"):
    ENGINES.append(EngineAtHand("vllm", _start_local("vllm")))
    ENGINES.append(EngineAtHand("openai-vllm", _over_vllms_server, parses_names=True, exact=False))
