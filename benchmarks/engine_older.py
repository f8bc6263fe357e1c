"""The older pipeline's algorithm, as the specification describes it, and the same with its image cache."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

from benchmarks.engine_workload import Workload
from workers.engine.api import Request
from workers.engine.hf.model_inputs import ModelInputs, left_padded
from workers.engine.processor import InputProcessor, Pixels

BATCH = 8  # the older pipeline's default
TIE = 1e-3  # two best logits closer than this may change places by rounding


@dataclass(frozen=True)
class Written:
    """One answer: its tokens, and where the two best logits first nearly tie (its length if never)."""

    ids: list[int]
    tie: int


@dataclass
class OlderRun:
    """What the older algorithm wrote, and where its time went."""

    answers: list[Written]
    seconds: float
    cpu_seconds: float
    seconds_prepare: float
    row_steps: int


def run_older(model: Any, processor: InputProcessor, workload: Workload, *, image_cache: bool) -> OlderRun:
    """Per pair, batches of 8 over the pair's own predicates, the image in every row, until the longest row
    ends.
    """
    started, cpu, preparing, row_steps = time.perf_counter(), time.process_time(), 0.0, 0
    cache: dict[str, Pixels] = {}
    answers: list[Written] = []
    for pair in workload.pairs:
        for at in range(0, len(pair), BATCH):
            batch = pair[at : at + BATCH]
            before = time.perf_counter()
            rows = [_row(processor, request, cache if image_cache else {}) for request in batch]
            preparing += time.perf_counter() - before
            written, steps = _generate(model, rows, [one.sampling.max_new_tokens for one in batch])
            answers += written
            row_steps += steps
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    return OlderRun(answers, seconds, cpu_seconds, preparing, row_steps)


def _row(processor: InputProcessor, request: Request, cache: dict[str, Pixels]) -> ModelInputs:
    key = request.image.key
    if key not in cache:
        cache[key] = processor.pixels(request.image)
    pixels = cache[key]
    ids = torch.tensor([processor.tokens(request.prompt, pixels.tokens)])
    kinds = (ids == processor.image_token_id).int()
    return {
        "input_ids": ids,
        "mm_token_type_ids": kinds,
        "pixel_values": pixels.values,
        "image_grid_thw": pixels.grid,
    }


def _generate(model: Any, rows: list[ModelInputs], lengths: list[int]) -> tuple[list[Written], int]:
    batch = {name: value.to(model.device) for name, value in left_padded(rows, pad=0).items()}
    prompt = batch["input_ids"].shape[1]
    config = GenerationConfig(max_new_tokens=max(lengths), do_sample=False, pad_token_id=0, eos_token_id=None)
    ties = _TieRecorder(len(rows), prompt)
    with torch.inference_mode():
        out = model.generate(
            **batch, generation_config=config, logits_processor=[ties],
            stopping_criteria=[_OwnLengths(lengths, prompt)],
        )  # fmt: skip
    new = out[:, prompt:].tolist()
    ended = zip(new, lengths, ties.first, strict=True)
    answers = [Written(ids[:length], min(tie, length)) for ids, length, tie in ended]
    return answers, len(rows) * (out.shape[1] - prompt)


class _TieRecorder(LogitsProcessor):
    """Notes where a row's two best logits first nearly tie."""

    def __init__(self, rows: int, prompt: int) -> None:
        self.first = [2**31] * rows
        self._prompt = prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        best = scores.topk(2, dim=-1).values
        for row in ((best[:, 0] - best[:, 1]) < TIE).nonzero()[:, 0].tolist():
            self.first[row] = min(self.first[row], input_ids.shape[1] - self._prompt)
        return scores


class _OwnLengths(StoppingCriteria):
    """Each row ends at its own length; the batch goes on until all have."""

    def __init__(self, lengths: list[int], prompt: int) -> None:
        self._ends = torch.tensor(lengths) + prompt

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return input_ids.shape[1] >= self._ends.to(input_ids.device)
