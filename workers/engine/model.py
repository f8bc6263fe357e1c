"""The checkpoint: its class, device and type, and what its configuration says."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from workers.engine.config import EngineConfig


def load_model(config: EngineConfig) -> Any:
    """The model's own class with its weights on the device, for inference."""
    device = resolve_device(config.device)
    model = AutoModelForImageTextToText.from_pretrained(
        config.model,
        revision=config.revision,
        dtype=resolve_dtype(config.dtype, device),
        trust_remote_code=False,
    )
    return model.to(device).eval()


def resolve_device(name: str) -> torch.device:
    """The torch device of a configuration's ``device``."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def weight_bytes(config: EngineConfig) -> int:
    """Bytes of the model's weights in the configuration's type, from its shape alone."""
    dtype = resolve_dtype(config.dtype, resolve_device(config.device))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(model_config(config), dtype=dtype, trust_remote_code=False)
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def resolve_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The weights' type: where none is named, bfloat16 on CUDA and, so that completions equal those of ``generate``,
    float32 on a CPU.
    """
    if name is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def model_config(config: EngineConfig) -> Any:
    """The model's own configuration, without its weights."""
    return AutoConfig.from_pretrained(config.model, revision=config.revision, trust_remote_code=False)


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


def quantization(config: Any) -> str | None:
    """How a checkpoint's weights are quantised, as its configuration names it ("fp8", "awq", "gptq"); None if not."""
    for part in (config, config.get_text_config()):
        found = getattr(part, "quantization_config", None)
        if found:
            method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
            return str(getattr(method, "value", method) or "unknown").lower()
    return None
