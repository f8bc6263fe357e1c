"""The real engine, scheduler and planner over a runner that computes nothing: what a GPU would be asked to do.

Time is modelled (``StepTimes``), memory too: what the pool, the weights and a step take, against what is allowed.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from workers.engine.api import Answer, Completion, ImageSource, Request, SamplingParams
from workers.engine.packed.engine import PackedEngine
from workers.engine.packed.memory_planner import PagedPlanner
from workers.engine.processor import Pixels
from workers.engine.runner.kv_cache import KVShape
from workers.engine.runner.paged.batch import fixed_rows
from workers.engine.runner.paged.tasks import BLOCK
from workers.engine.runner.step import DecodeToken, KVCacheSizes, KVSpan, PrefillChunk, SamplingMetadata, StepOutput

END = 2
MIXED = [h * w for w, h in ((16, 12), (20, 15), (25, 19), (25, 17), (24, 16), (32, 24), (32, 21), (24, 32))]
"""Visual tokens of photographs that are not 640 x 480."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a GPU and of a model on it."""

    allowed: int
    weights: int
    token: int  # keys and values of one
    hidden: int  # bytes of a token's widest activations
    logits: int  # bytes of a row's


@dataclass
class StepTimes:
    """Modelled seconds of what a GPU does."""

    decode: dict[int, float] = field(default_factory=dict)  # by fixed rows
    prefill_token: float = 0.0
    prefill_least: float = 0.0
    image_token: float = 0.0


class StubRunner:
    """A ``ModelRunner`` of a paged backend; a request's seed says how many tokens it writes."""

    block_tokens = BLOCK
    frees_before_resize = True
    context_length = 2**18

    def __init__(self, memory: Memory, times: StepTimes) -> None:
        self.kv_cache: Any = self
        self.shape = KVShape(36, 8, 128, torch.bfloat16, torch.device("meta"))
        self.memory, self.times = memory, times
        self.peak = self.steps = self.prefill_steps = self.encodes = self.full_steps = self.full_prefill = 0
        self.rows: list[int] = []
        self.captured: set[int] = set()
        self.seconds = self.stub_seconds = 0.0
        self.waiting: Any = lambda: 0
        self._pool = 0

    def encode(self, token_ids: list[int], pixels: Pixels, span: KVSpan) -> int:
        """Stands for an image's encoding."""
        self.encodes += 1
        self.seconds += len(token_ids) * self.times.image_token
        self._take(len(token_ids) * self.memory.hidden)
        _check(span.length, span.blocks)
        return len(token_ids)

    def step(self, decode: Many[DecodeToken], prefill: Many[PrefillChunk], sampling: SamplingMetadata) -> StepOutput:
        """Stands for a step."""
        started = time.perf_counter()
        self.steps += 1
        tokens = sum(len(chunk.token_ids) for chunk in prefill)
        self._take((tokens + len(decode)) * self.memory.hidden + len(sampling.seeds) * self.memory.logits)
        for token in decode:
            _check(token.offset + 1, token.blocks)
        for chunk in prefill:
            _check(len(chunk.token_ids), chunk.blocks)
        full = self.waiting() > 0
        self.full_steps += full
        if prefill:
            self.prefill_steps += 1
            self.full_prefill += full
            self.seconds += max(self.times.prefill_least, tokens * self.times.prefill_token)
        else:
            rows = fixed_rows(len(decode))
            self.captured.add(rows)
            self.seconds += self.times.decode.get(rows, 0.0)
            if full:
                self.rows.append(len(decode))
        written = [END if step >= seed else 7 for seed, step in zip(sampling.seeds, sampling.steps, strict=True)]
        self.stub_seconds += time.perf_counter() - started
        return StepOutput(written, [()] * len(written))

    def resize_kv_cache(self, sizes: KVCacheSizes, keep: Any) -> None:
        """Stands for the pool's allocation: the old one is freed first."""
        self._pool = sizes.blocks * BLOCK * self.memory.token
        self._take(0)

    def release_kv_cache(self) -> None:
        """Stands for freeing it."""
        self._pool = 0

    def stats(self) -> dict[str, float]:
        """None of its own."""
        return {}

    def move(self, source: int, target: int, length: int) -> None:
        """Blocks are not moved."""

    def _take(self, activations: int) -> None:
        needed = self.memory.weights + self._pool + activations
        self.peak = max(self.peak, needed)
        if needed > self.memory.allowed:
            raise torch.OutOfMemoryError(f"modelled: {needed / 2**30:.1f} GiB")


def _check(tokens: int, blocks: Any) -> None:
    if len(blocks) * BLOCK < tokens:
        raise ValueError(f"{len(blocks)} blocks for {tokens} tokens")


class StubProcessor:
    """An ``InputProcessor`` whose prompts are lists of ids already."""

    end_token_ids = frozenset({END})

    def __init__(self) -> None:
        self.prompts: dict[str, list[int]] = {}
        self.visual: dict[str, int] = {}

    def pixels(self, image: ImageSource) -> Pixels:
        """Of the size that the workload says."""
        return Pixels(None, None, self.visual[image.key])  # type: ignore[arg-type]

    def tokens(self, prompt: Any, visual: int) -> list[int]:
        """The prompt's ids."""
        return self.prompts[prompt[0][0]]

    def prefix_length(self, ids: list[int]) -> int:
        """Up to the last visual token."""
        return 4 + ids.count(3)

    def first_tokens(self, candidates: Many[str]) -> list[int]:
        """None: the workload asks for no candidates."""
        return []

    def answer(self, ids: list[int]) -> Answer:
        """Nothing."""
        return Answer("", None, True)


def _no_image() -> Any:
    raise AssertionError("the processor is a stub: nothing loads an image")


def workload(
    pairs: int, processor: StubProcessor, *, mixed: bool, limit: int = 512, seed: int = 0
) -> list[list[Request]]:
    """Pairs of one to ten requests, 16 an image; answers of 150 tokens on average."""
    dice = random.Random(seed)
    made: list[list[Request]] = []
    while len(made) < pairs:
        key = f"image {len(made)}"
        visual = dice.choice(MIXED + [300] * 8) if mixed else 300
        processor.visual[key] = visual
        image = ImageSource(key, _no_image)
        for _ in range(min(16, pairs - len(made))):
            shared = [100 + dice.randrange(1000) for _ in range(min(180, int(dice.lognormvariate(4.6, 0.12))))]
            requests = []
            for number in range(dice.choice((1, 3, 5, 6, 6, 7, 8, 9, 10))):
                name = f"{len(made)} {number}"
                own = [5000 + number] + [9] * min(90, int(dice.lognormvariate(2.6, 0.45)))
                processor.prompts[name] = [1] * 4 + [3] * visual + shared + own
                length = max(8, min(limit - 1, int(dice.lognormvariate(4.93, 0.4))))
                requests.append(Request(image, ((name, False),), SamplingParams(0.1, limit, length)))
            made.append(requests)
    return made


@dataclass(frozen=True)
class Simulated:
    """What a run came to."""

    runner: StubRunner
    stats: dict[str, float]
    seconds: float  # wall time of the host
    images: int
    completions: int


def simulate(
    pairs: int,
    memory: Memory,
    *,
    rows: int = 256,
    in_flight: int = 128,
    mixed: bool = True,
    times: StepTimes | None = None,
) -> Simulated:
    """Run so many pairs, ``in_flight`` at once, through the real engine."""
    processor, runner = StubProcessor(), StubRunner(memory, times or StepTimes())
    budget = memory.allowed - memory.weights
    budget -= max(budget // 10, 3 * 2**29)
    planner = PagedPlanner(memory.token, budget, rows, 8192, BLOCK)
    made = workload(pairs, processor, mixed=mixed)
    engine = PackedEngine(runner, processor, planner)  # type: ignore[arg-type]
    runner.waiting = lambda: engine._scheduler.num_waiting
    todo, done, lock = iter(made), threading.Event(), threading.Lock()
    left = [len(made)]
    completions: list[Completion] = []
    failed: list[BaseException] = []

    def start() -> None:
        with lock:
            pair = next(todo, None)
        if pair is None:
            return
        unfinished = [len(pair)]
        for future in engine.submit(pair):
            future.add_done_callback(partial(finished, unfinished))

    def finished(unfinished: list[int], future: Any) -> None:
        if error := future.exception():
            failed.append(error)
            done.set()
            return
        with lock:
            completions.append(future.result())
            unfinished[0] -= 1
            if unfinished[0]:
                return
            left[0] -= 1
        start()
        if not left[0]:
            done.set()

    started = time.perf_counter()
    for _ in range(in_flight):
        start()
    if not done.wait(600):
        raise TimeoutError(f"{left[0]} of {pairs} pairs are not done")
    if failed:
        engine.close()
        raise failed[0]
    seconds, stats = time.perf_counter() - started, engine.stats()
    engine.close()
    return Simulated(runner, stats, seconds, -(-pairs // 16), len(completions))
