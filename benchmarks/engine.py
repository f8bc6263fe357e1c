"""The engine against the older pipeline's algorithm and vLLM, on one workload in one run.

    python -m benchmarks.engine [--quick] [--runs older,engine] [--vllm-python PATH] [--images FOLDER]
    python -m benchmarks.engine --device cuda --config 8b

Prints a table and last one JSON line. Every answer has a length of its own (32 to 192 new tokens, seeded);
the model's end tokens are never the best, so that every algorithm writes the same tokens. "Same" compares
each answer with the older algorithm's, up to the first place where its two best logits are closer than 1e-3.
Needs the engine, torch, transformers, pillow and numpy alone; vLLM runs in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine_bound import decode_bound
from benchmarks.engine_models import model_folder
from benchmarks.engine_older import OlderRun, run_older
from benchmarks.engine_variants import VARIANTS, EngineRun, run_variant
from benchmarks.engine_vllm import run_vllm
from benchmarks.engine_workload import Workload, build_workload
from workers.engine.config import EngineConfig
from workers.engine.load import load_qwen_processor
from workers.engine.model import load_model

OLDER, CACHED, ENGINE, VLLM = "older", "older+cache", "engine", "vllm"


@dataclass
class Result:
    """One line of the table."""

    name: str
    seconds: float
    cpu_seconds: float  # of this process: steadier than the clock on a shared machine
    texts: list[str]
    occupancy: float
    phases: dict[str, float] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    options = _options(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if options.threads:
        torch.set_num_threads(options.threads)
    workload = build_workload(options.count, options.candidates, folder=options.images, seed=options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model or model_folder(Path(scratch), options.config, options.device, options.seed)
        config = EngineConfig(model=str(folder), device=options.device)
        _say(f"{options.config} on {options.device}, {torch.get_num_threads()} threads: {_counts(workload)}")
        results, reference, processor = _run_here(options, config, workload)
        if options.vllm_python and VLLM in options.runs:
            texts, seconds = run_vllm(options.vllm_python, folder, options)
            results.append(Result("vLLM", seconds, 0.0, texts, 0.0))
            _line(results[-1], results[0])
        _summary(results, reference, processor, workload, options)


def _run_here(
    options: argparse.Namespace, config: EngineConfig, workload: Workload
) -> tuple[list[Result], OlderRun | None, Any]:
    model = load_model(config)
    processor = load_qwen_processor(config, model.config.image_token_id)
    _warm_up(model, processor, workload)
    results: list[Result] = []
    reference = None
    for name, cache in ((OLDER, False), (CACHED, True)):
        if name in options.runs:
            run = run_older(model, processor, workload, image_cache=cache)
            reference = reference or run
            texts = [processor.text(answer.ids) for answer in run.answers]
            phases = {"prepare": run.seconds_prepare, "generate": run.seconds - run.seconds_prepare}
            label = "older pipeline" + (", its image cache" if cache else "")
            results.append(Result(label, run.seconds, run.cpu_seconds, texts, workload.tokens / run.row_steps, phases))
            _line(results[-1], results[0])
    for variant in VARIANTS if "steps" in options.runs else VARIANTS[-1:]:
        if ENGINE in options.runs:
            if variant.packed_weights and options.device == "cpu":
                model = load_model(config)  # packing changes it in place
            run_ = run_variant(variant, config, model, workload)
            results.append(_engine_result(variant.name, run_))
            _line(results[-1], results[0])
    return results, reference, processor


def _engine_result(name: str, run: EngineRun) -> Result:
    stats = run.stats.items()
    phases = {key.removeprefix("seconds_"): value for key, value in stats if key.startswith("seconds_")}
    return Result(name, run.seconds, run.cpu_seconds, run.texts, run.stats["occupancy"], phases)


def _warm_up(model: Any, processor: Any, workload: Workload) -> None:
    """A few tokens, so that the first algorithm does not pay for what is done once."""
    one = workload.pairs[0][:1]
    run_older(model, processor, Workload([[_short(request) for request in one]], 1), image_cache=False)


def _short(request: Any) -> Any:
    return replace(request, sampling=replace(request.sampling, max_new_tokens=4))


def _line(result: Result, first: Result) -> None:
    phases = " ".join(f"{name} {seconds:.1f}" for name, seconds in result.phases.items())
    speed = first.seconds / result.seconds
    took = f"{result.seconds:8.1f} s {result.cpu_seconds:7.1f} cpu {speed:6.1f}x"
    _say(f"{result.name:42s} {took}  busy {result.occupancy:5.1%}  {phases}")


def _summary(
    results: list[Result],
    reference: OlderRun | None,
    processor: Any,
    workload: Workload,
    options: argparse.Namespace,
) -> None:
    by_name = {result.name: result for result in results}
    engine = next((result for result in reversed(results) if "engine" in result.name), results[-1])
    older, vllm = by_name.get("older pipeline"), by_name.get("vLLM")
    summary: dict[str, Any] = {
        "speedup_vs_older": round(older.seconds / engine.seconds, 2) if older else None,
        "speedup_vs_vllm": round(vllm.seconds / engine.seconds, 2) if vllm else None,
        "cpu_speedup_vs_older": round(older.cpu_seconds / engine.cpu_seconds, 2) if older else None,
        "same_tokens": None,
        "occupancy": round(engine.occupancy, 4),
        "seconds": {result.name: round(result.seconds, 2) for result in results},
        "phases": {name: round(seconds, 2) for name, seconds in engine.phases.items()},
        "tokens_per_second": round(workload.tokens / engine.seconds, 1),
    }
    if reference:
        ties = sum(answer.tie < len(answer.ids) for answer in reference.answers)
        summary["same_tokens"] = {result.name: _same(result, reference, processor) for result in results[1:]}
        summary["near_ties"] = ties
        _say(f"{ties} of {len(reference.answers)} answers have a near tie (two best logits within 1e-3)")
    if options.device != "cpu":
        bound = decode_bound(options.config, workload)
        summary["bound_tokens_per_second"] = round(bound, 1)
        _say(f"{summary['tokens_per_second']} tokens/s; the memory's bound for decoding is {bound:.0f}")
    sys.stdout.write(json.dumps(summary) + "\n")


def _same(result: Result, reference: OlderRun, processor: Any) -> float:
    """Share of answers equal to the reference up to its first near tie."""
    same = 0
    for text, answer in zip(result.texts, reference.answers, strict=True):
        sure = processor.text(answer.ids[: answer.tie])
        same += text == sure if answer.tie == len(answer.ids) else text.startswith(sure)
    return round(same / len(result.texts), 4)


def _counts(workload: Workload) -> str:
    return (
        f"{workload.images} images, {len(workload.pairs)} pairs, "
        f"{len(workload.requests)} requests, {workload.tokens} new tokens"
    )


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", default="cpu", help="cpu or cuda")
    add("--config", choices=("tiny", "60m", "8b"), default="60m", help="shape of the random model")
    add("--model", type=Path, help="a model folder instead of random weights")
    add("--images", type=Path, help="folder of photographs (default: synthetic images)")
    add("--count", type=int, default=1, help="images of the workload")
    add("--candidates", type=int, default=100, help="requests an image")
    add("--quick", action="store_true", help="one image of 16 candidates: two minutes")
    add("--runs", default=f"{OLDER},{CACHED},steps,{ENGINE},{VLLM}", help="which to run, with commas")
    add("--vllm-python", type=Path, help="python of an environment that has vLLM")
    add("--vllm-cores", default="0-1", help="CPU cores that vLLM binds itself to")
    add("--threads", type=int, help="torch's CPU threads")
    add("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.runs = set(options.runs.split(","))
    if options.quick:
        options.count, options.candidates = 1, 16
    return options


if __name__ == "__main__":
    main()
