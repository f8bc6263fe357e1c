"""Fresh scenes as tensors: the images of one batch share a grid, each carries several questions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tools.small_model.architecture import MAX_PIXELS, MERGE, PATCH
from tools.small_model.dataset import Question, Verification, questions
from tools.small_model.forward import Questions
from tools.small_model.rules import TRAINING_MARGINS
from tools.small_model.scenes import Scene, draw_scene
from tools.small_model.shapes import COLOURS

BEFORE_IMAGE = "<|im_start|>user\n<|vision_start|>"
PROMPT = "<|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n"
CENTRES = (12, 16)
"""Where the second numbers of the two centres stand after the image, when names are one token each."""
COLOUR_NAMES = list(COLOURS)
COLOUR_WEIGHT = 3.0


@dataclass(frozen=True)
class Batch:
    """Questions with their true answers."""

    asked: Questions
    labels: Tensor  # (questions, answer_length), -100 behind the answer's end
    weights: Tensor  # like labels
    colours: Tensor  # (questions, 2) indices into COLOUR_NAMES
    verifies: Tensor  # (questions,) whether yes or no is asked for, and not a description
    cells: Tensor  # (images, tokens): 0 for the ground, else 1 + the colour in the middle of the cell


def draw_batch(
    tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator, images: int, each: int, verifications: int = 0
) -> Batch:
    """``images`` fresh scenes with ``each`` questions, and then so many that are asked for yes or no."""
    down, across = _grid(rng)
    scenes = [draw_scene(rng, _size_near(rng, down, across), TRAINING_MARGINS) for _ in range(images)]
    asked = [question for scene in scenes for question in _asked(rng, scene, each, verifications)]
    prefix = torch.tensor(tokenizer(BEFORE_IMAGE)["input_ids"])
    pixels = torch.stack([patches(scene.image, down, across) for scene in scenes])
    ids, start, labels = _tokens(tokenizer, asked)
    colour_ids = torch.tensor([tokenizer.convert_tokens_to_ids(f"Ġ{name}") for name in COLOUR_NAMES])
    weights = torch.where(torch.isin(labels, colour_ids), COLOUR_WEIGHT, 1.0) * (labels >= 0)
    colours = [[COLOUR_NAMES.index(q.subject.colour), COLOUR_NAMES.index(q.object.colour)] for q in asked]
    cells = torch.stack([_cells(scene, down, across) for scene in scenes])
    return Batch(
        Questions(
            pixels=pixels,
            grid=(down * MERGE, across * MERGE),
            prefix=prefix,
            ids=ids,
            answer_start=start,
            answer_length=labels.shape[1],
            probes=torch.tensor(CENTRES),
        ),
        labels=labels,
        weights=weights,
        colours=torch.tensor(colours),
        verifies=torch.tensor([isinstance(question, Verification) for question in asked]),
        cells=cells,
    )


def _asked(rng: np.random.Generator, scene: Scene, each: int, verifications: int) -> list[Question]:
    described = questions(rng, scene, each, TRAINING_MARGINS)
    verified = questions(rng, scene, verifications, TRAINING_MARGINS) if verifications else []
    return [*described, *(Verification.of(question, scene.image.size) for question in verified)]


def patches(image: Image.Image, down: int, across: int) -> Tensor:
    """The image as the processor cuts it, but for the doubled frame: (patches, 3 * PATCH * PATCH)."""
    cell = PATCH * MERGE
    resized = image.resize((across * cell, down * cell), Image.Resampling.BICUBIC)
    values = torch.from_numpy(np.array(resized)).float().permute(2, 0, 1) / 127.5 - 1.0
    cut = values.reshape(3, down, MERGE, PATCH, across, MERGE, PATCH)
    return cut.permute(1, 4, 2, 5, 0, 3, 6).reshape(down * across * MERGE**2, 3 * PATCH * PATCH)


def _grid(rng: np.random.Generator) -> tuple[int, int]:
    while True:
        down, across = (int(side) for side in rng.integers(7, 11, 2))
        if down * across * (PATCH * MERGE) ** 2 <= MAX_PIXELS:
            return down, across


def _size_near(rng: np.random.Generator, down: int, across: int) -> tuple[int, int]:
    """An image size that the processor brings to this grid."""
    cell, shift = PATCH * MERGE, rng.integers(-7, 8, 2)
    return across * cell + int(shift[0]), down * cell + int(shift[1])


def _tokens(tokenizer: PreTrainedTokenizerFast, asked: list[Question]) -> tuple[Tensor, Tensor, Tensor]:
    prompts = tokenizer([PROMPT.format(question.prompt) for question in asked])["input_ids"]
    answers = tokenizer([f"{question.answer}<|im_end|>" for question in asked])["input_ids"]
    start = torch.tensor([len(prompt) - 1 for prompt in prompts])
    longest = max(map(len, answers))
    length = max(map(len, prompts)) + longest
    ids = torch.full((len(asked), length), tokenizer.pad_token_id)
    labels = torch.full((len(asked), longest), -100)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[row, : len(answer)] = torch.tensor(answer)
    return ids, start, labels


def _cells(scene: Scene, down: int, across: int) -> Tensor:
    height, width = scene.owner.shape
    rows = ((np.arange(down) + 0.5) / down * height).astype(int)
    columns = ((np.arange(across) + 0.5) / across * width).astype(int)
    colour = np.array([0, *(1 + COLOUR_NAMES.index(o.colour) for o in scene.objects)])
    return torch.from_numpy(colour[scene.owner[np.ix_(rows, columns)]].reshape(-1))
