"""Write a trained model as the folder that `from_pretrained` reads, without this package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

from tools.small_model.architecture import MAX_PIXELS, MERGE, MIN_PIXELS, PATCH


def image_processor() -> Qwen2VLImageProcessorPil:
    """The processor of the images: the training's own cut into patches."""
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=2,
        min_pixels=MIN_PIXELS,
        max_pixels=MAX_PIXELS,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def export_model(
    model: Qwen3VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    *,
    record: dict[str, Any],
) -> None:
    """Write weights, configuration, tokenizer, processor and, as ``training.json``, how they came about."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
