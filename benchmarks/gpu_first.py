"""The first minutes on a GPU: each section gives the numbers that a decision hangs on, guarded, in its own time.

    python -m benchmarks.gpu_first --out gpu_first.json                  (about 8 minutes)
    python -m benchmarks.gpu_first --device cpu --size tiny --seconds 2  (anywhere: that it runs)

Needs a checkout and what the engine needs, no weights: random ones are made on the device. What could not be measured
says why. The last line of the output is the whole as JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.engine_bound import decode_bound
from benchmarks.engine_models import FAMILY, model_folder
from benchmarks.engine_older import run_older
from benchmarks.engine_vllm import run_vllm
from benchmarks.engine_workload import Workload, build_workload, warm_up
from tests.support.paged_steps import mixed_step
from tools.random_model import build_config, build_tokenizer, random_model, write_processors
from workers.engine.config import EngineConfig
from workers.engine.load import load_qwen_processor, packed_engine
from workers.engine.packed.engine import PackedEngine
from workers.engine.runner.paged import ops, reference
from workers.engine.runner.paged.costs import attention_cost
from workers.engine.runner.step import DecodeToken, KVSpan, SamplingMetadata

IMAGE_TOKENS, GROUP_TOKENS, OWN_TOKENS = 305, 100, 102  # of the farm's requests, means
Section = Callable[[], dict[str, Any]]


class GpuFirst:
    """The sections, over one random model."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.cuda = options.device.startswith("cuda")
        self.folder = Path(tempfile.mkdtemp(prefix="gpu-first-"))
        tokenizer = build_tokenizer(FAMILY)
        config = build_config(tokenizer, options.size, FAMILY)
        dtype = torch.bfloat16 if self.cuda else torch.float32
        self.model = random_model(config, 0, dtype, options.device)
        ends = [config.text_config.eos_token_id, tokenizer.pad_token_id]
        with torch.no_grad():  # answers end at their own lengths alone
            self.model.lm_head.weight[ends] = 0
            self.model.lm_head.weight[len(tokenizer) :] = 0
        self.model.generation_config.eos_token_id = ends
        config.save_pretrained(self.folder)
        tokenizer.save_pretrained(self.folder)
        write_processors(self.folder, options.size, FAMILY)
        self.config = EngineConfig(
            model=str(self.folder), device=options.device, compile=True, cpu_memory_bytes=2**28,
            batch_size=None if self.cuda else 16,
        )  # fmt: skip

    def sections(self) -> dict[str, Section]:
        """By name, in the order in which they are worth having."""
        return {
            "machine": self.machine, "kernels": self.kernels, "pool_reuse": self.pool_reuse, "steps": self.steps,
            "growth": self.growth, "soak": self.soak, "older": self.older, "vllm": self.vllm,
        }  # fmt: skip

    def machine(self) -> dict[str, Any]:
        """What this is, and its bandwidth by copies."""
        found: dict[str, Any] = {"torch": torch.__version__, "triton": find_spec("triton") is not None}
        if self.cuda:
            properties = torch.cuda.get_device_properties(0)
            found |= {"device": properties.name, "GiB": round(properties.total_memory / 2**30, 1)}
            found["cuda"] = torch.version.cuda
        size = 2**30 if self.cuda else 2**24
        source = torch.empty(size, dtype=torch.uint8, device=self.options.device)
        target = torch.empty_like(source)
        found["copy TB/s"] = round(2 * size / self._milliseconds(lambda: target.copy_(source)) / 1e9, 3)
        return found

    def kernels(self) -> dict[str, Any]:
        """The attention operator at the model's shape: its error, and bytes a second by its formula."""
        text = self.model.config.text_config
        heads = (text.num_attention_heads, text.num_key_value_heads, text.head_dim)
        step = mixed_step(64 if self.cuda else 8, heads=heads, dtype=self.model.dtype, blocks=1000)
        scale = heads[2] ** -0.5
        lists = [each.to(self.options.device) for each in step.lists]
        tasks, device = step.tasks, self.options.device
        rest = (tasks.blocks.to(device), tasks.own_length.to(device), tasks.present.to(device))
        inputs = [each.to(self.options.device) for each in (step.query, step.keys, step.values)]
        operator: Any = ops.attention
        in_torch: Any = reference.attention

        def run() -> Any:
            return operator(*inputs, lists, *rest, scale)

        out = run()
        exact = step.exact(scale)
        took = self._milliseconds(run)
        cost = attention_cost(step.tasks, *heads, self.model.dtype.itemsize)
        plain = in_torch(inputs[0], (inputs[1], inputs[2]), ops.split_lists(lists), *rest, scale)
        return {
            "relative error": float((out.double().cpu() - exact).norm() / exact.norm()),
            "of the plain reference": float((plain.double().cpu() - exact).norm() / exact.norm()),
            "ms": took, "GB/s by formula": round(cost.bytes / took / 1e6, 1),
        }  # fmt: skip

    def pool_reuse(self) -> dict[str, Any]:
        """Graphs captured, dropped and captured again, each time with a new pool handle."""
        if not self.cuda:
            return {"not measured": "needs CUDA"}
        x, weight = (torch.randn(256, 4096, device="cuda", dtype=self.model.dtype) for _ in range(2))
        sums = []
        for _ in range(3):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=torch.cuda.graph_pool_handle()):
                y = x @ weight.T
            graph.replay()
            sums.append(float(y.float().abs().mean()))
            del graph, y
        return {"equal": len(set(sums)) == 1}

    def steps(self) -> dict[str, Any]:
        """Milliseconds a step, by rows and images, run kernel by kernel and replayed."""
        found: dict[str, Any] = {}
        engine = packed_engine(self.config, self.model)
        self._run(engine, warm_up())  # gives the KV cache its size
        engine._queue.close()  # the steps are ours now
        runner: Any = engine._runner
        graphs = runner._backend._graphs
        for rows, images in ((64, 1), (64, 4), (128, 4), (256, 8)) if self.cuda else ((4, 1), (8, 2)):
            decode = synthetic_rows(rows, images, runner.kv_cache.blocks, IMAGE_TOKENS if self.cuda else 20)
            sampling = SamplingMetadata([0.1] * rows, list(range(rows)), [0] * rows, [()] * rows)
            for name, usable in (("eager", False), ("graph", True)):
                graphs.usable, before = usable, graphs.replayed
                took = self._milliseconds(lambda d=decode, s=sampling: runner.step(d, [], s), 8)  # type: ignore[misc]
                found[f"{rows} rows, {images} images, {name}: ms"] = took
                if usable:
                    found[f"{rows} rows, {images} images: replayed"] = graphs.replayed > before
            alone = self._milliseconds(lambda d=decode: runner._backend.prepare_step(d, []), 8)  # type: ignore[misc]
            found[f"{rows} rows, {images} images, laying out: ms"] = alone
        found |= graphs.stats()
        if self.cuda:
            found["GiB reserved"] = round(torch.cuda.max_memory_reserved() / 2**30, 1)
        engine.close()
        return found

    def growth(self) -> dict[str, Any]:
        """Longer answers and more images than before: what was allocated once is enough."""
        engine = packed_engine(self.config, self.model)
        for tokens in (16, 300 if self.cuda else 40):
            workload = build_workload(2, 12, folder=None, seed=1)
            longer = [[replace(r, sampling=replace(r.sampling, max_new_tokens=tokens)) for r in pair]
                      for pair in workload.pairs]  # fmt: skip
            self._run(engine, Workload(longer, workload.images))
        stats = engine.stats()
        engine.close()
        found = {"preempted": stats.get("preempted", 0.0), "slots": stats["slots"], "replayed": stats["replayed"]}
        if self.cuda:
            allowed = (self.config.memory_fraction or 0.8) * torch.cuda.mem_get_info()[1]
            found["peak reserved of allowed"] = torch.cuda.max_memory_reserved() / allowed
        return found

    def soak(self) -> dict[str, Any]:
        """Tokens a second as the farm drives the engine, by pairs in flight."""
        found: dict[str, Any] = {}
        for in_flight in (32, 128) if self.cuda else (4,):
            engine = packed_engine(self.config, self.model)
            self._run(engine, warm_up())
            before, started = engine.stats(), time.perf_counter()
            self._drive(engine, in_flight)
            took, after = time.perf_counter() - started, engine.stats()
            engine.close()
            since = {name: value - before.get(name, 0.0) for name, value in after.items()}
            found[f"{in_flight} pairs"] = {
                "tokens/s": round(since["tokens"] / took, 1), "texts/s": round(since["requests"] / took, 2),
                "ms a step": round(1e3 * took / max(1.0, since["steps"]), 2),
                "rows a step": round(since["busy_slots"] / max(1.0, since["steps"]), 1),
                "replayed": round(since["replayed"] / max(1.0, since["steps"]), 3),
                "preempted": since.get("preempted", 0.0), "captured": after["captured"],
            }  # fmt: skip
            del engine
            self._collect()
        if self.cuda:
            bound = decode_bound(self.options.size, build_workload(8, 300, folder=None, seed=2), 256)
            found["bandwidth bound at 256 rows: tokens/s"] = round(bound)
        return found

    def older(self) -> dict[str, Any]:
        """``generate`` by the older algorithm, over a pair or two."""
        workload = build_workload(1, 8 if self.cuda else 3, folder=None, seed=3)
        processor = load_qwen_processor(self.config, self.model.config.image_token_id)
        self.model.set_attn_implementation("sdpa")
        run = run_older(self.model, processor, workload, image_cache=True)
        return {"tokens/s": round(workload.tokens / run.seconds, 2), "seconds": round(run.seconds, 1)}

    def vllm(self) -> dict[str, Any]:
        """The soak's workload through vLLM, where it is installed."""
        python = self.options.vllm_python or (Path(sys.executable) if find_spec("vllm") else None)
        if python is None:
            return {"not measured": "vLLM is not installed, and --vllm-python names no Python that has it"}
        self.model = None
        self._collect()
        folder = model_folder(self.folder / "written", self.options.size, self.options.device, 0)
        given = argparse.Namespace(
            device=self.options.device, count=8, candidates=100, seed=2, images=None, vllm_cores="0-1"
        )
        seconds = run_vllm(python, folder, given)[1]
        return {"tokens/s": round(build_workload(8, 100, folder=None, seed=2).tokens / seconds, 1)}

    def _drive(self, engine: PackedEngine, in_flight: int) -> None:
        todo = iter(build_workload(40 if self.cuda else 1, 100 if self.cuda else 16, folder=None, seed=2).pairs)
        lock, end = threading.Lock(), time.perf_counter() + self.options.seconds

        def work() -> None:
            while time.perf_counter() < end:
                with lock:
                    pair = next(todo, None)
                if pair is None:
                    return
                for future in engine.submit(pair):
                    future.result()

        threads = [threading.Thread(target=work) for _ in range(in_flight)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _run(self, engine: PackedEngine, workload: Workload) -> None:
        for future in [future for pair in workload.pairs for future in engine.submit(pair)]:
            future.result()

    def _milliseconds(self, work: Callable[[], object], times: int = 20) -> float:
        """Of one call, mean, after two more."""
        for _ in range(2):
            work()
        self._synchronise()
        started = time.perf_counter()
        for _ in range(times):
            work()
        self._synchronise()
        return round((time.perf_counter() - started) / times * 1e3, 3)

    def _synchronise(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def _collect(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()


def synthetic_rows(rows: int, images: int, blocks: int, image_tokens: int) -> list[DecodeToken]:
    """Rows in the middle of their answers, in pairs of six, spread over the images; blocks in a random order."""
    numbers = np.random.default_rng(0).permutation(np.arange(1, blocks, dtype=np.int32)).tolist()

    def take(tokens: int) -> np.ndarray:
        count = -(-tokens // 16)
        taken = np.array(numbers[:count], dtype=np.int32)
        del numbers[:count]
        if len(taken) < count:
            raise ValueError(f"{blocks} blocks are too few for {rows} rows over {images} images")
        return taken

    seen = [KVSpan(at, image_tokens, take(image_tokens)) for at in range(images)]
    groups = [KVSpan(at, GROUP_TOKENS, take(GROUP_TOKENS)) for at in range(-(-rows // 6))]
    offsets = [OWN_TOKENS // 2 + at % OWN_TOKENS for at in range(rows)]
    return [
        DecodeToken(7, 430, offset, seen[at * images // rows], groups[at // 6], take(offset + 1))
        for at, offset in enumerate(offsets)
    ]


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage()[:300])


def main() -> None:
    """Run the sections and print the whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="8b", choices=("tiny", "60m", "8b"))
    parser.add_argument("--seconds", type=float, default=60, help="of each soak")
    parser.add_argument("--limit", type=float, default=480, help="seconds after which no section is begun")
    parser.add_argument("--vllm-python", type=Path, help="a Python that has vLLM")
    parser.add_argument("--out", type=Path, help="file that is written after each section")
    options = parser.parse_args()
    warnings = _Warnings()
    logging.getLogger().addHandler(warnings)
    began, found = time.perf_counter(), dict[str, Any]()
    first = GpuFirst(options)
    for name, section in first.sections().items():
        started, said = time.perf_counter(), len(warnings.said)
        if started - began > options.limit:
            found[name] = {"not measured": f"{options.limit:.0f} seconds were over"}
        else:
            found[name] = _guarded(section)
            found[name]["seconds taken"] = round(time.perf_counter() - started, 1)
            if warnings.said[said:]:
                found[name]["warnings"] = sorted(set(warnings.said[said:]))[:5]
        first._collect()
        sys.stderr.write(json.dumps({name: found[name]}, default=str) + "\n")
        if options.out:
            options.out.write_text(json.dumps(found, default=str, indent=1), encoding="utf-8")
    sys.stdout.write(json.dumps(found, default=str) + "\n")


def _guarded(section: Section) -> dict[str, Any]:
    """What a section found, or how it failed: the others are worth having all the same."""
    try:
        return section()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        return {"error": repr(error)[:300], "trace": traceback.format_exc()[-800:]}


if __name__ == "__main__":
    main()
