"""vLLM behind the engine's interface, where it is installed: the ecosystem's own answer to the same question.

Greedy texts equal the other engines'; sampled ones are as reproducible, from the same seeds, but drawn by
vLLM's own generator. vLLM shares prefixes and images by itself (its prefix cache hashes tokens and
images).
"""

from __future__ import annotations

import itertools
import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from workers.engine.api import Completion, EngineError, ImageUnreadable, PromptTooLong, Request
from workers.engine.config import EngineConfig
from workers.engine.fault_isolation import bisect_batch
from workers.engine.processor import InputProcessor
from workers.engine.request_queue import PendingRequest, RequestQueue

log = logging.getLogger(__name__)

LONGEST = 16384  # tokens of prompt and answer that vLLM reserves memory for, where the model allows as many
SLOTS = 128


class VllmEngine:
    """An ``Engine`` that steps a vLLM engine in its own thread."""

    def __init__(self, config: EngineConfig, processor: InputProcessor, context: int) -> None:
        self._processor = processor
        self._context = min(context, LONGEST)
        self._engine = _start(config, self._context)
        self._running: dict[str, PendingRequest] = {}
        self._numbers = itertools.count()
        self._count: defaultdict[str, float] = defaultdict(float)
        self._queue = RequestQueue()
        self._queue.start(self._loop, "vllm-engine")

    def submit(self, requests: Sequence[Request]) -> list[Future[Completion]]:
        """As ``Engine.submit`` says."""
        return self._queue.submit(requests)

    def stats(self) -> dict[str, float]:
        """``requests``, ``tokens`` and ``steps`` since the start."""
        return dict(self._count) | {"occupancy": 0.0}

    def close(self) -> None:
        """As ``Engine.close`` says."""
        self._queue.close()

    def _loop(self) -> None:
        while not self._queue.stopping:
            batch = self._queue.take(None, wait=not self._running)
            for pending in batch:
                bisect_batch(self._add, [pending], PendingRequest.fail)
            if self._running:
                bisect_batch(self._step, [None], self._died)
        self._engine.engine_core.shutdown()

    def _add(self, batch: Sequence[PendingRequest]) -> None:
        pending, name = batch[0], str(next(self._numbers))
        ids = self._processor.tokens(pending.request.prompt, 1)  # vLLM repeats the image's token itself
        sampling = pending.request.sampling
        if len(ids) + sampling.max_new_tokens > self._context:
            raise PromptTooLong(f"prompt and answer exceed the {self._context} tokens given to vLLM")
        image = pending.request.image.load().convert("RGB")
        prompt = {"prompt_token_ids": ids, "multi_modal_data": {"image": image}}
        try:
            self._engine.add_request(name, prompt, _params(sampling.temperature, sampling))
        except ValueError as error:
            raise ImageUnreadable(f"vLLM refuses the prompt: {error}") from error
        self._running[name] = pending

    def _step(self, _: Sequence[None]) -> None:
        self._count["steps"] += 1
        for output in self._engine.step():
            if output.finished and output.request_id in self._running:
                self._finish(self._running.pop(output.request_id), output)

    def _finish(self, pending: PendingRequest, output: Any) -> None:
        written = output.outputs[0]
        stopped = written.finish_reason == "stop"
        ids = list(written.token_ids)[: -1 if stopped else None]
        self._count["requests"] += 1
        self._count["tokens"] += len(ids)
        reason = "stop" if stopped else "length"
        prompt = len(output.prompt_token_ids)
        pending.finish(Completion(self._processor.text(ids), reason, len(ids), prompt))

    def _died(self, _: None, error: Exception) -> None:
        raise EngineError(f"vLLM's engine died: {error}") from error


def _params(temperature: float, sampling: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        temperature=temperature,
        max_tokens=sampling.max_new_tokens,
        seed=sampling.seed % 2**63,
        detokenize=False,
        output_kind=_final_only(),
    )


def _final_only() -> Any:
    from vllm.sampling_params import RequestOutputKind

    return RequestOutputKind.FINAL_ONLY


def _start(config: EngineConfig, context: int) -> Any:
    """A vLLM engine with the configuration's model, memory and limits."""
    # vLLM reads these two from the environment alone.
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, config.cpu_memory_bytes >> 30)))
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import EngineArgs, LLMEngine

    size = {"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels}
    limits = {name: value for name, value in size.items() if value}
    arguments = EngineArgs(
        model=config.model,
        revision=config.revision,
        dtype=config.dtype or ("float32" if config.device == "cpu" else "auto"),  # as the other engines do
        max_model_len=context,
        max_num_seqs=config.batch_size or SLOTS,
        gpu_memory_utilization=config.memory_fraction or 0.8,
        limit_mm_per_prompt={"image": 1, "video": 0},
        mm_processor_kwargs={"size": limits} if limits else None,
        trust_remote_code=False,
        disable_log_stats=True,
    )
    return LLMEngine.from_engine_args(arguments)
