"""What ``generate`` takes for one generation, and for a left-padded batch of them.

Qwen-VL models get it from the engine's own prompter, so that a picture is preprocessed once; any other model
from its own processor, whatever that makes of pictures and texts.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoProcessor

from workers.engine.generation import Generation, Picture, PictureUnreadable
from workers.engine.prompting import Pixels, Prompter, added_tokens, render

ModelInputs = dict[str, Tensor]
PICTURES_KEPT = 4  # preprocessed pictures: a plain engine meets an image's pairs one after another


class InputBuilder(Protocol):
    """Builds one model's inputs."""

    def inputs(self, generation: Generation) -> ModelInputs:
        """Tensors by name; those that run along the prompt are (1, length)."""
        ...

    def text(self, ids: Sequence[int]) -> str:
        """Decoded new tokens, special ones skipped."""
        ...


class QwenInputs:
    """Inputs of the Qwen-VL families."""

    def __init__(self, prompter: Prompter, model: Any) -> None:
        self._prompter = prompter
        self._typed = "mm_token_type_ids" in inspect.signature(model.forward).parameters
        self._pixels: OrderedDict[str, Pixels] = OrderedDict()
        self.text = prompter.text

    def inputs(self, generation: Generation) -> ModelInputs:
        """As ``InputBuilder`` says; raises what the picture's ``load`` raises."""
        pixels = self._preprocessed(generation.picture)
        ids = torch.tensor([self._prompter.tokens(generation.prompt, pixels.tokens)])
        built = {"input_ids": ids, "pixel_values": pixels.values, "image_grid_thw": pixels.grid}
        if self._typed:
            built["mm_token_type_ids"] = (ids == self._prompter.image_token_id).int()
        return built

    def _preprocessed(self, picture: Picture) -> Pixels:
        if picture.key not in self._pixels:
            self._pixels[picture.key] = self._prompter.pixels(picture)
            if len(self._pixels) > PICTURES_KEPT:
                self._pixels.popitem(last=False)
        self._pixels.move_to_end(picture.key)
        return self._pixels[picture.key]


class ProcessorInputs:
    """Inputs of any other image-text model, by its own processor."""

    def __init__(self, model: str, revision: str | None) -> None:
        self._processor = AutoProcessor.from_pretrained(model, revision=revision, trust_remote_code=False)
        self._added = added_tokens(self._processor.tokenizer)

    def inputs(self, generation: Generation) -> ModelInputs:
        """As ``InputBuilder`` says.

        A control token spelt in a name is broken by a space after its first character, because a processor
        tokenises the whole prompt by itself.
        """
        image = generation.picture.load().convert("RGB")
        text = "".join(self._harmless(part) if data else part for part, data in generation.prompt)
        rendered = render(self._processor, text)
        try:
            built = self._processor(text=[rendered], images=[image], return_tensors="pt", add_special_tokens=False)
        except OSError as error:
            raise PictureUnreadable(f"the picture cannot be preprocessed: {error}") from error
        return {name: value for name, value in built.items() if isinstance(value, Tensor)}

    def text(self, ids: Sequence[int]) -> str:
        """Decoded new tokens, special ones skipped."""
        return str(self._processor.tokenizer.decode(ids, skip_special_tokens=True))

    def _harmless(self, text: str) -> str:
        return self._added.sub(lambda match: f"{match[0][:1]} {match[0][1:]}", text)


def left_padded(rows: Sequence[ModelInputs], pad: int) -> ModelInputs:
    """One batch of several generations' inputs: what runs along a prompt is padded on the left, the rest is
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
