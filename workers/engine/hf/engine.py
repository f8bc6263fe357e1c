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

from workers.engine.api import NO_TOKEN, Completion, LogitsNotFinite, PromptTooLong, Request, SamplingParams, Written
from workers.engine.fault_isolation import bisect_batch
from workers.engine.hf.model_inputs import InputBuilder, ModelInputs, left_padded
from workers.engine.model import context_length
from workers.engine.request_queue import PendingRequest, RequestQueue
from workers.engine.sampling import adjusted, choose, next_probabilities, uniforms

log = logging.getLogger(__name__)

DEFAULT_BATCH = 8
_NEVER = 2**62


class HfEngine:
    """An ``Engine`` over ``model.generate``."""

    def __init__(self, model: Any, builder: InputBuilder, batch_size: int | None = None) -> None:
        self._model = model
        self._builder = builder
        self._batch = batch_size or DEFAULT_BATCH
        self._ends = builder.end_token_ids
        # What a call leaves open, transformers takes from the model's own: penalties, a minimum length (decision 9).
        model.generation_config = GenerationConfig()
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
        written, sampler = self._generate(rows, samplings, candidates)
        self._count["seconds_prepare"] += prepared - started
        self._count["seconds_generate"] += time.perf_counter() - prepared
        if self._queue.stopping:
            return
        noise_from = sampler.noise_from.tolist()
        for pending, row, ids, found, noise in zip(
            waiting, rows, written, sampler.probabilities, noise_from, strict=True
        ):
            if noise < len(ids):
                pending.fail(LogitsNotFinite(f"the logits of token {noise + 1} hold NaN or infinity"))
            else:
                pending.finish(self._completion(ids, row["input_ids"].shape[1], found))

    def _prepared(self, request: Request) -> ModelInputs:
        row = self._builder.inputs(request)
        length, answer = row["input_ids"].shape[1], request.sampling.max_new_tokens
        if length + answer > self._context:
            raise PromptTooLong(f"{length} tokens of prompt and {answer} of answer exceed {self._context}")
        return row

    def _generate(
        self, rows: list[ModelInputs], samplings: list[SamplingParams], candidates: list[list[int]]
    ) -> tuple[list[list[int]], _RowSampler]:
        """New token ids of each row, its end token included where it wrote one; and what the sampler saw."""
        pad = min(self._ends)
        batch = {name: value.to(self._model.device) for name, value in left_padded(rows, pad).items()}
        length = batch["input_ids"].shape[1]
        config = GenerationConfig(
            max_new_tokens=max(sampling.max_new_tokens for sampling in samplings),
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=sorted(self._ends),
        )
        sampler = _RowSampler(samplings, batch["input_ids"], batch["attention_mask"], candidates)
        stop = _RowStop(samplings, length, self._queue, sampler)
        with torch.inference_mode():
            out = self._model.generate(
                **batch, generation_config=config, logits_processor=[sampler], stopping_criteria=[stop]
            )
        new = out[:, length:].tolist()
        written = [self._until_end(ids, sampling) for ids, sampling in zip(new, samplings, strict=True)]
        self._count["row_steps"] += len(rows) * (out.shape[1] - length)
        self._count["batches"] += 1
        return written, sampler

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
        text, reasoning, closed = self._builder.answer(kept)
        return Completion(text, reason, len(kept), prompt_tokens, probabilities, reasoning, closed)


class _RowSampler(LogitsProcessor):  # type: ignore[misc]
    """Leaves each row one token to choose: the one that its own sampling draws."""

    def __init__(
        self, samplings: Sequence[SamplingParams], prompts: Tensor, mask: Tensor, candidates: list[list[int]]
    ) -> None:
        """``prompts`` and ``mask``: (rows, length), padded on the left."""
        self._length = prompts.shape[1]
        self._candidates = candidates
        self.probabilities: list[tuple[float, ...]] = []  # of the candidates, once the first token is chosen
        self.noise_from = torch.full((len(samplings),), _NEVER, device=prompts.device)
        """(rows,): the first token whose logits were not finite, counted from 0."""
        self._seeds = np.array([sampling.seed % 2**64 for sampling in samplings], dtype=np.uint64)
        self._temperatures = torch.tensor([sampling.temperature for sampling in samplings], device=prompts.device)
        self._greedy = all(sampling.temperature == 0 for sampling in samplings)
        self._samplings = samplings
        self._prompts = [
            row[kept.bool()].tolist() if sampling.penalises else []
            for row, kept, sampling in zip(prompts, mask, samplings, strict=True)
        ]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        number = input_ids.shape[1] - self._length
        if number == 0:
            self.probabilities = next_probabilities(scores, self._candidates)
        scores = adjusted(scores, self._written(input_ids))
        if self._greedy:
            chosen = choose(scores, None, None)
        else:
            steps = np.full(len(self._seeds), number, dtype=np.uint64)
            numbers = torch.from_numpy(uniforms(self._seeds, steps)).to(scores.device)
            chosen = choose(scores, self._temperatures, numbers)
        noise = chosen == NO_TOKEN
        self.noise_from = torch.where(noise & (self.noise_from == _NEVER), number, self.noise_from)
        if self._greedy:
            return scores
        chosen = chosen.clamp_min(0)  # a row without a token ends, whichever it is
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)

    def _written(self, input_ids: Tensor) -> list[Written | None]:
        return [
            Written(sampling, prompt, row[self._length :].tolist() if sampling.penalises else ())
            if sampling.penalises or sampling.truncates
            else None
            for sampling, prompt, row in zip(self._samplings, self._prompts, input_ids, strict=True)
        ]


class _RowStop(StoppingCriteria):  # type: ignore[misc]
    """Ends a row at its own longest answer or at its first logits that are no numbers, and every row once the engine is
    closing.
    """

    def __init__(
        self, samplings: Sequence[SamplingParams], prompt: int, queue: RequestQueue, sampler: _RowSampler
    ) -> None:
        self._lengths = torch.tensor([prompt + sampling.max_new_tokens for sampling in samplings])
        self._queue, self._sampler = queue, sampler

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        done = input_ids.shape[1] >= self._lengths.to(input_ids.device)
        return done | (self._sampler.noise_from < _NEVER) | self._queue.stopping
