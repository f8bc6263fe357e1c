"""The checkpoint: its class, device and type, and what its configuration says."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils import cached_file

from workers.engine.config import EngineConfig

_NAMED = 4  # keys of a kind that a refusal shows
_PLAIN_TYPES = frozenset({"F64", "F32", "F16", "BF16"})  # of weights that are not quantised, as safetensors says


class CheckpointError(ValueError):
    """The weights are not those of the model that the configuration describes; the message names the keys."""


def load_model(config: EngineConfig) -> Any:
    """The model's own class with its weights on the device, for inference.

    Raises CheckpointError where weights are missing, unknown or of another shape: transformers would warn and go on
    with random ones, and every text would be noise. What the model's class itself lets be absent or unknown is no
    fault. Raises what ``from_pretrained`` raises for a model that cannot be found.
    """
    device = resolve_device(config.device)
    try:
        model, report = AutoModelForImageTextToText.from_pretrained(
            config.model,
            revision=config.revision,
            dtype=resolve_dtype(config.dtype, device),
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # so that these are in the report, and refused with the rest
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise CheckpointError(f"{config.model}: a file of its weights is damaged: {error}") from error
    _refuse_odd(config, report)
    _refuse_quantised(config)
    return model.to(device).eval()


def _refuse_odd(config: EngineConfig, report: Any) -> None:
    """Raise CheckpointError unless the loading report is empty."""
    found = {
        "missing": report.get("missing_keys"),
        "not the model's": report.get("unexpected_keys"),
        "of another shape": [entry[0] for entry in report.get("mismatched_keys") or ()],
        "not read": report.get("error_msgs"),
    }
    parts = [f"{len(keys)} {what} ({_some(keys)})" for what, keys in found.items() if keys]
    if parts:
        raise CheckpointError(
            f"{config.model}: these weights are not those of the model in its config.json: {'; '.join(parts)}"
        )


def _refuse_quantised(config: EngineConfig) -> None:
    """Raise CheckpointError for weights stored as whole numbers or in eight bits that no configuration explains: cast
    to the model's type without their scales they are noise.
    """
    if quantization(model_config(config)) is not None:
        return
    odd = []
    for path in _weight_files(config):
        with safe_open(path, framework="pt") as file:
            keys = [key for key in file.keys() if key.endswith("weight")]  # noqa: SIM118 - no mapping
            odd += [key for key in keys if file.get_slice(key).get_dtype() not in _PLAIN_TYPES]
    if odd:
        raise CheckpointError(
            f"{config.model}: {len(odd)} quantised weights ({_some(odd)}), and config.json has no quantization_config"
        )


def _weight_files(config: EngineConfig) -> list[Path]:
    """The files that the model was loaded from, where they are safetensors."""
    found = cached_file(config.model, "config.json", revision=config.revision)
    if found is None:
        return []
    folder = Path(str(found)).parent
    index = folder / "model.safetensors.index.json"
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    return [folder / name for name in sorted(names) if (folder / name).is_file()]


def _some(keys: Collection[str]) -> str:
    ordered = sorted(map(str, keys))
    more = f" and {len(ordered) - _NAMED} more" if len(ordered) > _NAMED else ""
    return ", ".join(ordered[:_NAMED]) + more


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
