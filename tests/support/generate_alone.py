"""The reference: ``model.generate`` on one prompt alone, its tokens and how sure each choice was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from workers.engine.api import Completion, Request
from workers.engine.hf.model_inputs import QwenInputs

TIE = 1e-3  # two best logits closer than this may swap by rounding (docs/architecture.md, "Equality of descriptions")


@dataclass(frozen=True)
class Reference:
    """What ``generate`` wrote, and the first token at which the two best logits nearly tie (its length if
    none).
    """

    text: str
    tokens: list[int]
    tie: int


def generate_alone(model: Any, inputs: QwenInputs, request: Request) -> Reference:
    """Greedy ``model.generate`` on the prompt alone."""
    row = inputs.inputs(request)
    length = row["input_ids"].shape[1]
    with torch.inference_mode():
        out = model.generate(
            **row,
            max_new_tokens=request.sampling.max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(inputs.end_token_ids),
            pad_token_id=min(inputs.end_token_ids),
            output_logits=True,
            return_dict_in_generate=True,
        )
    tokens = out.sequences[0, length:].tolist()
    gaps = [float(two[0] - two[1]) for two in (step[0].topk(2).values for step in out.logits)]
    tie = next((at for at, gap in enumerate(gaps) if gap < TIE), len(tokens))
    return Reference(inputs.text(tokens), tokens, tie)


def agrees(description: Completion, reference: Reference, inputs: QwenInputs) -> bool:
    """Whether a description equals the reference, up to the first near tie."""
    if reference.tie == len(reference.tokens):
        return description.text == reference.text
    return description.text.startswith(inputs.text(reference.tokens[: reference.tie]).rstrip("\ufffd"))
