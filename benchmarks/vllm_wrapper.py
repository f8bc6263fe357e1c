"""What our wrapper costs over vLLM's own offline loop, and what seeded sampling costs: in the environment with vLLM.

    python -m benchmarks.vllm_wrapper [--images N] [--candidates N] [--rounds N] [--size 60m] [--device cpu|cuda]

Both loops drive the same vLLM engine in turn, over the same prompts, with empty prefix and image caches each time:
``LLM.generate`` over token ids and decoded images, and our engine over the farm's requests, which decodes the images
and tokenises the prompts in the time that is measured. Prints each round, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.engine_models import model_folder
from benchmarks.engine_workload import build_workload
from workers.engine.api import Request
from workers.engine.config import EngineConfig
from workers.engine.load import load_qwen_processor
from workers.engine.model import model_config
from workers.engine.vllm.core import VllmCore, arguments, sampling_params
from workers.engine.vllm.engine import VllmEngine

CONTEXT = 4096


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    options = _options(arguments)
    workload = build_workload(options.images, options.candidates, folder=options.folder, seed=options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model or model_folder(Path(scratch), options.size, options.device, options.seed)
        both = Both(EngineConfig(model=str(folder), device=options.device, cpu_memory_bytes=2 * 2**30), options.eager)
        kinds: dict[str, Callable[[], tuple[float, list[str]]]] = {
            "vLLM's loop": lambda: both.theirs(workload.requests),
            "ours": lambda: both.ours(workload.requests),
        }
        for seeded, temperature in ((True, 0.1), (False, 0.1)):
            requests = [_at(request, temperature, number) for number, request in enumerate(workload.requests)]
            name = f"vLLM's loop, temperature {temperature}, {'seeded' if seeded else 'unseeded'}"
            kinds[name] = lambda requests=requests, seeded=seeded: both.theirs(requests, seeded)  # type: ignore[misc]
        seconds, texts = _rounds(kinds, options.rounds)
        both.close()
    _report(seconds, texts, workload.tokens, len(workload.requests))


class Both:
    """One vLLM engine under two loops."""

    def __init__(self, config: EngineConfig, eager: bool) -> None:
        from vllm import LLM

        wanted = vars(arguments(replace(config, compile=False) if eager else config, CONTEXT))
        names = ("model", "dtype", "max_model_len", "gpu_memory_utilization", "limit_mm_per_prompt", "enforce_eager",
                 "mm_processor_cache_gb", "enable_prefix_caching", "enable_chunked_prefill",
                 "max_num_batched_tokens")  # fmt: skip
        self._llm = LLM(**{name: wanted[name] for name in names})
        self._processor = load_qwen_processor(config, model_config(config).image_token_id)
        self._core = VllmCore.around(self._llm.llm_engine)
        self._engine = VllmEngine(self._core, self._processor, CONTEXT)

    def theirs(self, requests: Sequence[Request], seeded: bool = True) -> tuple[float, list[str]]:
        """Seconds and texts of ``LLM.generate``; tokens and pixels are made before."""
        images = {request.image.key: request.image.load() for request in requests}
        prompts: list[Any] = [
            {
                "prompt_token_ids": self._processor.tokens(request.prompt, 1),
                "multi_modal_data": {"image": images[request.image.key]},
            }
            for request in requests
        ]
        params = [sampling_params(request.sampling) for request in requests]
        for one in params:
            one.detokenize = True
            one.seed = one.seed if seeded else None
        self._empty()
        started = time.perf_counter()
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - started, [output.outputs[0].text for output in outputs]

    def ours(self, requests: Sequence[Request]) -> tuple[float, list[str]]:
        """Seconds and texts of our engine."""
        self._empty()
        started = time.perf_counter()
        futures = self._engine.submit(requests)
        texts = [future.result().text for future in futures]
        return time.perf_counter() - started, texts

    def close(self) -> None:
        """End vLLM."""
        self._engine.close()

    def _empty(self) -> None:
        self._llm.reset_prefix_cache()
        self._llm.reset_mm_cache()


def _rounds(
    kinds: dict[str, Callable[[], tuple[float, list[str]]]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[str]]]:
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    texts: dict[str, list[str]] = {}
    for number in range(rounds + 1):  # the first is for what happens once
        for name in list(kinds) if number % 2 else reversed(list(kinds)):
            took, texts[name] = kinds[name]()
            if number:
                seconds[name].append(took)
                _say(f"round {number}: {name:44s} {took:7.2f} s")
    return seconds, texts


def _report(seconds: dict[str, list[float]], texts: dict[str, list[str]], tokens: int, requests: int) -> None:
    median = {name: statistics.median(took) for name, took in seconds.items()}
    best = {name: min(took) for name, took in seconds.items()}  # of what else runs on the machine, it sees least
    theirs, ours, seeded, unseeded = (best[name] for name in seconds)
    same = sum(one == other for one, other in zip(texts["ours"], texts["vLLM's loop"], strict=True))
    summary = {
        "requests": requests,
        "tokens": tokens,
        "best_seconds": {name: round(took, 2) for name, took in best.items()},
        "median_seconds": {name: round(took, 2) for name, took in median.items()},
        "wrapper_costs_percent": round(100 * (ours / theirs - 1), 1),
        "seeded_sampling_costs_percent": round(100 * (seeded / unseeded - 1), 1),
        "same_texts": f"{same} of {requests}",
        "tokens_per_second": round(tokens / ours, 1),
    }
    _say(json.dumps(summary))


def _at(request: Request, temperature: float, seed: int) -> Request:
    return replace(request, sampling=replace(request.sampling, temperature=temperature, seed=seed))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4, help="Images.")
    parser.add_argument("--candidates", type=int, default=40, help="Texts an image.")
    parser.add_argument("--rounds", type=int, default=5, help="Rounds that count; the best of each are compared.")
    parser.add_argument("--size", default="60m", help="Of a model with random weights: tiny, 60m, 8b.")
    parser.add_argument("--model", type=Path, help="A model folder, in place of --size.")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--folder", type=Path, help="Photographs, in place of drawn images.")
    parser.add_argument("--seed", type=int, default=0, help="Of the workload.")
    parser.add_argument("--eager", action="store_true", help="vLLM without its compiler: starts faster, runs slower.")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
