"""What ``generate`` takes for one request, and for a left-padded batch of them.

Qwen-VL models get it from the engine's own processor, so that an image is preprocessed once; any other model
from its own processor, whatever that makes of images and prompts.
"""

from __future__ import annotations

import inspect
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoProcessor

from workers.engine.api import Answer, CannotServe, ImageSource, ImageUnreadable, Request
from workers.engine.processor import (
    InputProcessor,
    Pixels,
    Reasoning,
    added_tokens,
    end_tokens,
    first_tokens,
    render,
    use_legacy_template,
)

ModelInputs = dict[str, Tensor]
IMAGES_KEPT = 4  # preprocessed images: a transformers engine meets an image's pairs one after another


class InputBuilder(Protocol):
    """Builds one model's inputs."""

    end_token_ids: frozenset[int]
    """After any of these the model writes no more."""

    def inputs(self, request: Request) -> ModelInputs:
        """Tensors by name; those that run along the prompt are (1, length)."""
        ...

    def first_tokens(self, candidates: Sequence[str]) -> list[int]:
        """As ``processor.first_tokens`` says."""
        ...

    def text(self, ids: Sequence[int]) -> str:
        """Decoded new tokens, special ones skipped."""
        ...

    def answer(self, ids: Sequence[int]) -> Answer:
        """Decoded new tokens, the reasoning apart."""
        ...


class QwenInputs:
    """Inputs of the Qwen-VL families."""

    def __init__(self, processor: InputProcessor, model: Any) -> None:
        self._processor = processor
        self._typed = "mm_token_type_ids" in inspect.signature(model.forward).parameters
        self._pixels: OrderedDict[str, Pixels] = OrderedDict()
        self.text, self.answer, self.first_tokens = processor.text, processor.answer, processor.first_tokens
        self.end_token_ids = processor.end_token_ids

    def inputs(self, request: Request) -> ModelInputs:
        """As ``InputBuilder`` says; raises what the image's ``load`` raises."""
        pixels = self._preprocessed(request.image)
        ids = torch.tensor([self._processor.tokens(request.prompt, pixels.tokens)])
        built = {"input_ids": ids, "pixel_values": pixels.values, "image_grid_thw": pixels.grid}
        if self._typed:
            built["mm_token_type_ids"] = (ids == self._processor.image_token_id).int()
        return built

    def _preprocessed(self, image: ImageSource) -> Pixels:
        if image.key not in self._pixels:
            self._pixels[image.key] = self._processor.pixels(image)
            if len(self._pixels) > IMAGES_KEPT:
                self._pixels.popitem(last=False)
        self._pixels.move_to_end(image.key)
        return self._pixels[image.key]


class ProcessorInputs:
    """Inputs of any other image-text model, by its own processor."""

    def __init__(self, model: str, revision: str | None) -> None:
        """Raises ``CannotServe`` where the processor cannot be had, or has no chat template."""
        try:
            self._processor = AutoProcessor.from_pretrained(model, revision=revision, trust_remote_code=False)
        except (ImportError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise CannotServe(_why_no_processor(model, error)) from error
        tokenizer = getattr(self._processor, "tokenizer", None)
        if tokenizer is None:
            raise CannotServe(f"{model}: {type(self._processor).__name__} is no processor of images and text")
        use_legacy_template(self._processor, model, revision)
        self.end_token_ids = end_tokens(model, revision, tokenizer, self._processor)
        self._added = added_tokens(tokenizer)
        self._reasoning = Reasoning(tokenizer, render(self._processor, ""))

    def inputs(self, request: Request) -> ModelInputs:
        """As ``InputBuilder`` says.

        A control token spelt in a name is broken by a space after its first character, because a processor
        tokenises the whole prompt by itself.
        """
        image = request.image.load().convert("RGB")
        text = "".join(self._harmless(part) if data else part for part, data in request.prompt)
        rendered = render(self._processor, text)
        try:
            built = self._processor(text=[rendered], images=[image], return_tensors="pt", add_special_tokens=False)
        except OSError as error:
            raise ImageUnreadable(f"the image cannot be preprocessed: {error}") from error
        return {name: value for name, value in built.items() if isinstance(value, Tensor)}

    def first_tokens(self, candidates: Sequence[str]) -> list[int]:
        """As ``processor.first_tokens`` says."""
        return first_tokens(self._processor.tokenizer, candidates)

    def text(self, ids: Sequence[int]) -> str:
        """Decoded new tokens, special ones skipped."""
        return str(self._processor.tokenizer.decode(ids, skip_special_tokens=True))

    def answer(self, ids: Sequence[int]) -> Answer:
        """Decoded new tokens, the reasoning apart."""
        return self._reasoning.part(ids, self.text)

    def _harmless(self, text: str) -> str:
        return self._added.sub(lambda match: f"{match[0][:1]} {match[0][1:]}", text)


def _why_no_processor(model: str, error: Exception) -> str:
    """One sentence: transformers' own message is several paragraphs, of which the first is empty."""
    said = " ".join(str(error).split()) or type(error).__name__
    known = ("torchvision", "torchaudio", "timm", "sentencepiece", "num2words", "librosa")
    lacking = [name for name in known if re.search(rf"\b{name}\b", said, re.I)]
    if not lacking:
        return f"{model}: its processor cannot be loaded: {said}"
    return (
        f"{model}: its processor needs {' and '.join(lacking)}, not installed here: install it in this environment "
        "(a torchvision of the very build of torch), or have a server with the model (--engine openai --base-url URL)"
    )


def left_padded(rows: Sequence[ModelInputs], pad: int) -> ModelInputs:
    """One batch of several requests' inputs: what runs along a prompt is padded on the left, the rest is
    stacked.
    """
    longest = max(row["input_ids"].shape[1] for row in rows)
    batch = {}
    for name in rows[0]:
        parts = [row[name] for row in rows]
        if all(part.shape == row["input_ids"].shape for part, row in zip(parts, rows, strict=True)):
            fill = pad if name == "input_ids" else 0
            parts = [torch.nn.functional.pad(part, (longest - part.shape[1], 0), value=fill) for part in parts]
        batch[name] = torch.cat(parts)
    lengths = torch.tensor([row["input_ids"].shape[1] for row in rows])
    batch["attention_mask"] = (torch.arange(longest) >= longest - lengths[:, None]).long()
    return batch
