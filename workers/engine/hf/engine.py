"""The transformers engine: batches of any requests, decoded by the model's own ``generate``.

For every image-text model that the packed engine does not know, and the reference that the packed one is compared
with. Rows of a batch may come from different pairs and images; the batch runs until its longest row ends.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

from workers.engine.api import Completion, PromptTooLong, Request, SamplingParams
from workers.engine.fault_isolation import bisect_batch
from workers.engine.hf.model_inputs import InputBuilder, ModelInputs, left_padded
from workers.engine.model import context_length, end_tokens
from workers.engine.request_queue import PendingRequest, RequestQueue
from workers.engine.sampling import choose, next_probabilities, uniforms

log = logging.getLogger(__name__)

DEFAULT_BATCH = 8


class HfEngine:
    """An ``Engine`` over ``model.generate``."""

    def __init__(self, model: Any, builder: InputBuilder, batch_size: int | None = None) -> None:
        self._model = model
        self._builder = builder
        self._batch = batch_size or DEFAULT_BATCH
        self._ends = end_tokens(model)
        self._context = context_length(model.config)
        self._count: defaultdict[str, float] = defaultdict(float)
        self._queue = RequestQueue()
        self._queue.start(self._loop, "hf-engine")

    def submit(self, requests: Sequence[Request]) -> list[Future[Completion]]:
        """As ``Engine.submit`` says."""
        return self._queue.submit(requests)

    def stats(self) -> dict[str, float]:
        """``requests``, ``tokens``, ``batches``, ``seconds_prepare``, ``seconds_generate``, and
        ``occupancy``: the share of decoded rows that were still being written.
        """
        count = dict(self._count)
        return count | {"occupancy": count.get("tokens", 0) / max(1, count.get("row_steps", 0))}

    def close(self) -> None:
        """As ``Engine.close`` says."""
        self._queue.close()

    def _loop(self) -> None:
        while not self._queue.stopping:
            batch = self._queue.take(self._batch, wait=True)
            bisect_batch(self._run, batch, lambda pending, error: pending.fail(error))

    def _run(self, batch: Sequence[PendingRequest]) -> None:
        waiting = [pending for pending in batch if not pending.future.done()]
        if not waiting or self._queue.stopping:
            return
        started = time.perf_counter()
        rows = [self._prepared(pending.request) for pending in waiting]
        prepared = time.perf_counter()
        candidates = [self._builder.first_tokens(pending.request.candidates) for pending in waiting]
        samplings = [pending.request.sampling for pending in waiting]
        written, probabilities = self._generate(rows, samplings, candidates)
        self._count["seconds_prepare"] += prepared - started
        self._count["seconds_generate"] += time.perf_counter() - prepared
        if self._queue.stopping:
            return
        for pending, row, ids, found in zip(waiting, rows, written, probabilities, strict=True):
            pending.finish(self._completion(ids, row["input_ids"].shape[1], found))

    def _prepared(self, request: Request) -> ModelInputs:
        row = self._builder.inputs(request)
        length, answer = row["input_ids"].shape[1], request.sampling.max_new_tokens
        if length + answer > self._context:
            raise PromptTooLong(f"{length} tokens of prompt and {answer} of answer exceed {self._context}")
        return row

    def _generate(
        self, rows: list[ModelInputs], samplings: list[SamplingParams], candidates: list[list[int]]
    ) -> tuple[list[list[int]], list[tuple[float, ...]]]:
        """New token ids of each row, its end token included where it wrote one; and its candidates' probabilities."""
        pad = self._ends[0] if self._ends else 0
        batch = {name: value.to(self._model.device) for name, value in left_padded(rows, pad).items()}
        length = batch["input_ids"].shape[1]
        config = GenerationConfig(
            max_new_tokens=max(sampling.max_new_tokens for sampling in samplings),
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=self._ends or None,
        )
        sampler = _RowSampler(samplings, length, candidates)
        stop = _RowStop(samplings, length, self._queue)
        with torch.inference_mode():
            out = self._model.generate(
                **batch, generation_config=config, logits_processor=[sampler], stopping_criteria=[stop]
            )
        new = out[:, length:].tolist()
        written = [self._until_end(ids, sampling) for ids, sampling in zip(new, samplings, strict=True)]
        self._count["row_steps"] += len(rows) * (out.shape[1] - length)
        self._count["batches"] += 1
        return written, sampler.probabilities

    def _until_end(self, ids: list[int], sampling: SamplingParams) -> list[int]:
        """A row's tokens up to its own end, without what pads it to the batch's longest."""
        ids = ids[: sampling.max_new_tokens]
        end = next((at for at, token in enumerate(ids) if token in self._ends), len(ids) - 1)
        return ids[: end + 1]

    def _completion(self, ids: list[int], prompt_tokens: int, probabilities: tuple[float, ...]) -> Completion:
        stopped = bool(ids) and ids[-1] in self._ends
        kept = ids[:-1] if stopped else ids
        self._count["requests"] += 1
        self._count["tokens"] += len(kept)
        reason = "stop" if stopped else "length"
        return Completion(self._builder.text(kept), reason, len(kept), prompt_tokens, probabilities)


class _RowSampler(LogitsProcessor):  # type: ignore[misc]
    """Leaves each row one token to choose: the one that its own sampling draws."""

    def __init__(self, samplings: Sequence[SamplingParams], prompt: int, candidates: list[list[int]]) -> None:
        self._prompt = prompt
        self._candidates = candidates
        self.probabilities: list[tuple[float, ...]] = []  # of the candidates, once the first token is chosen
        self._seeds = np.array([sampling.seed % 2**64 for sampling in samplings], dtype=np.uint64)
        self._temperatures = torch.tensor([sampling.temperature for sampling in samplings])
        self._greedy = all(sampling.temperature == 0 for sampling in samplings)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] == self._prompt:
            self.probabilities = next_probabilities(scores, self._candidates)
        if self._greedy:
            return scores
        steps = np.full(len(self._seeds), input_ids.shape[1] - self._prompt, dtype=np.uint64)
        numbers = torch.from_numpy(uniforms(self._seeds, steps)).to(scores.device)
        chosen = choose(scores, self._temperatures.to(scores.device), numbers)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)


class _RowStop(StoppingCriteria):  # type: ignore[misc]
    """Ends a row at its own longest answer, and every row once the engine is closing."""

    def __init__(self, samplings: Sequence[SamplingParams], prompt: int, queue: RequestQueue) -> None:
        self._lengths = torch.tensor([prompt + sampling.max_new_tokens for sampling in samplings])
        self._queue = queue

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        done = input_ids.shape[1] >= self._lengths.to(input_ids.device)
        return done | self._queue.stopping
