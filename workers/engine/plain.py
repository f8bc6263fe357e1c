"""The plain engine: batches of any generations, decoded by the model's own ``generate``.

For every image-text model that the fast engine does not know, and the reference that the fast one is compared
with. Rows of a batch may come from different pairs and pictures; the batch runs until its longest row ends.
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

from workers.engine.boundary import run_divided
from workers.engine.generation import Description, Generation, PromptTooLong, Sampling
from workers.engine.inbox import Inbox, Request
from workers.engine.inputs import InputBuilder, ModelInputs, left_padded
from workers.engine.sampling import choose, uniforms
from workers.engine.threads import release_team

log = logging.getLogger(__name__)

DEFAULT_BATCH = 8


class PlainEngine:
    """An ``Engine`` over ``model.generate``."""

    def __init__(self, model: Any, builder: InputBuilder, batch_size: int | None = None) -> None:
        self._model = model
        self._builder = builder
        self._batch = batch_size or DEFAULT_BATCH
        self._ends = end_tokens(model)
        self._context = context_length(model.config)
        self._count: defaultdict[str, float] = defaultdict(float)
        self._inbox = Inbox()
        release_team()
        self._inbox.start(self._loop, "plain-engine")

    def submit(self, generations: Sequence[Generation]) -> list[Future[Description]]:
        """As ``Engine.submit`` says."""
        return self._inbox.submit(generations)

    def stats(self) -> dict[str, float]:
        """``generations``, ``tokens``, ``batches``, ``seconds_prepare``, ``seconds_generate``, and
        ``occupancy``: the share of decoded rows that were still being written.
        """
        count = dict(self._count)
        return count | {"occupancy": count.get("tokens", 0) / max(1, count.get("row_steps", 0))}

    def close(self) -> None:
        """As ``Engine.close`` says."""
        self._inbox.close()

    def _loop(self) -> None:
        while not self._inbox.stopping:
            requests = self._inbox.take(self._batch, wait=True)
            run_divided(self._run, requests, lambda request, error: request.fail(error))

    def _run(self, requests: Sequence[Request]) -> None:
        waiting = [request for request in requests if not request.future.done()]
        if not waiting or self._inbox.stopping:
            return
        started = time.perf_counter()
        rows = [self._prepared(request.generation) for request in waiting]
        prepared = time.perf_counter()
        written = self._generate(rows, [request.generation.sampling for request in waiting])
        self._count["seconds_prepare"] += prepared - started
        self._count["seconds_generate"] += time.perf_counter() - prepared
        if self._inbox.stopping:
            return
        for request, row, ids in zip(waiting, rows, written, strict=True):
            request.finish(self._description(ids, row["input_ids"].shape[1]))

    def _prepared(self, generation: Generation) -> ModelInputs:
        row = self._builder.inputs(generation)
        length, answer = row["input_ids"].shape[1], generation.sampling.max_new_tokens
        if length + answer > self._context:
            raise PromptTooLong(f"{length} tokens of prompt and {answer} of answer exceed {self._context}")
        return row

    def _generate(self, rows: list[ModelInputs], samplings: list[Sampling]) -> list[list[int]]:
        """New token ids of each row, its end token included where it wrote one."""
        pad = self._ends[0] if self._ends else 0
        batch = {name: value.to(self._model.device) for name, value in left_padded(rows, pad).items()}
        length = batch["input_ids"].shape[1]
        config = GenerationConfig(
            max_new_tokens=max(sampling.max_new_tokens for sampling in samplings),
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=self._ends or None,
        )
        sampler = _RowSampler(samplings, length)
        stop = _RowStop(samplings, length, self._inbox)
        with torch.inference_mode():
            out = self._model.generate(
                **batch, generation_config=config, logits_processor=[sampler], stopping_criteria=[stop]
            )
        new = out[:, length:].tolist()
        written = [self._own(ids, sampling) for ids, sampling in zip(new, samplings, strict=True)]
        self._count["row_steps"] += len(rows) * (out.shape[1] - length)
        self._count["batches"] += 1
        return written

    def _own(self, ids: list[int], sampling: Sampling) -> list[int]:
        """A row's tokens up to its own end, without what pads it to the batch's longest."""
        ids = ids[: sampling.max_new_tokens]
        end = next((at for at, token in enumerate(ids) if token in self._ends), len(ids) - 1)
        return ids[: end + 1]

    def _description(self, ids: list[int], prompt_tokens: int) -> Description:
        stopped = bool(ids) and ids[-1] in self._ends
        kept = ids[:-1] if stopped else ids
        self._count["generations"] += 1
        self._count["tokens"] += len(kept)
        return Description(self._builder.text(kept), "stop" if stopped else "length", len(kept), prompt_tokens)


class _RowSampler(LogitsProcessor):  # type: ignore[misc]
    """Leaves each row one token to choose: the one that its own sampling draws."""

    def __init__(self, samplings: Sequence[Sampling], prompt: int) -> None:
        self._prompt = prompt
        self._seeds = np.array([sampling.seed % 2**64 for sampling in samplings], dtype=np.uint64)
        self._temperatures = torch.tensor([sampling.temperature for sampling in samplings])
        self._greedy = all(sampling.temperature == 0 for sampling in samplings)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._greedy:
            return scores
        steps = np.full(len(self._seeds), input_ids.shape[1] - self._prompt, dtype=np.uint64)
        numbers = torch.from_numpy(uniforms(self._seeds, steps)).to(scores.device)
        chosen = choose(scores, self._temperatures.to(scores.device), numbers)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)


class _RowStop(StoppingCriteria):  # type: ignore[misc]
    """Ends a row at its own longest answer, and every row once the engine is closing."""

    def __init__(self, samplings: Sequence[Sampling], prompt: int, inbox: Inbox) -> None:
        self._lengths = torch.tensor([prompt + sampling.max_new_tokens for sampling in samplings])
        self._inbox = inbox

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        done = input_ids.shape[1] >= self._lengths.to(input_ids.device)
        return done | self._inbox.stopping


def end_tokens(model: Any) -> list[int]:
    """The ids after which the model writes no more: of its generation configuration, else its own."""
    for config in (model.generation_config, model.config, model.config.get_text_config()):
        ids = getattr(config, "eos_token_id", None)
        if ids is not None:
            return list(ids) if isinstance(ids, (list, tuple)) else [int(ids)]
    return []


def context_length(config: Any) -> int:
    """Tokens that the model was made for, prompt and answer together."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 2**31)
