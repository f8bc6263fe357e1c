"""Random-weights models for the benchmark, which never end an answer by themselves."""

from __future__ import annotations

from pathlib import Path

import torch

from tools.random_model import build_config, build_tokenizer, random_model, write_processors

FAMILY = "qwen3_vl"


def model_folder(folder: Path, size: str, device: str, seed: int) -> Path:
    """Write a model of the given size, its end tokens unable to be the best choice, and give its folder."""
    tokenizer = build_tokenizer(FAMILY)
    config = build_config(tokenizer, size, FAMILY)
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    model = random_model(config, seed, dtype, device)
    ends = [config.text_config.eos_token_id, tokenizer.pad_token_id]
    with torch.no_grad():
        model.lm_head.weight[ends] = 0
        model.lm_head.weight[len(tokenizer) :] = 0
    model.generation_config.eos_token_id = ends
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_processors(folder, size, FAMILY)
    return folder
