"""From a configuration to a running engine: which one it is follows from the model's own configuration."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from workers.engine.config import EngineConfig
from workers.engine.engine import FastEngine
from workers.engine.generation import Engine
from workers.engine.inputs import ProcessorInputs, QwenInputs
from workers.engine.memory import MemoryPlanner
from workers.engine.model_runner import ModelRunner
from workers.engine.plain import PlainEngine, context_length
from workers.engine.prompting import Prompter, load_prompter

log = logging.getLogger(__name__)

CPU_SLOTS, CUDA_SLOTS = 128, 512  # beyond these a step grows as fast as its rows do
CPU_PREFILL, CUDA_PREFILL = 4096, 8192  # prompt tokens in one step
ACTIVATIONS = 3 * 2**29  # bytes on CUDA; what it does not cover, running out of memory teaches

FAST_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")


def load_engine(config: EngineConfig) -> Engine:
    """Load the model and start its engine.

    Raises ``OSError`` where the model cannot be found and ``ValueError`` where the configuration does not fit
    it.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    family = model_config(config).model_type
    kind = _kind(config, family)
    log.info("model %s (%s): the %s engine", config.model, family, kind)
    if kind == "vllm":
        return _vllm(config)
    model = load_model(config)
    if kind == "fast":
        return fast_engine(config, model)
    if family in FAST_FAMILIES:
        return PlainEngine(
            model,
            QwenInputs(load_qwen_prompter(config, model.config.image_token_id), model),
            config.batch_size,
        )
    return PlainEngine(model, ProcessorInputs(config.model, config.revision), config.batch_size)


def _vllm(config: EngineConfig) -> Engine:
    from workers.engine.vllm import VllmEngine  # an optional extra

    own = model_config(config)
    return VllmEngine(config, load_qwen_prompter(config, own.image_token_id), context_length(own))


def fast_engine(config: EngineConfig, model: Any, *, packed: bool = True, kernels: bool = True) -> FastEngine:
    """The fast engine over a loaded model, which it makes its own; ``packed`` and ``kernels`` as ``ModelRunner``
    says.
    """
    cuda = model.device.type == "cuda"
    # Experts are chosen on the host in some versions of transformers, which a graph cannot record.
    graphs = config.compile if config.compile is not None else cuda and "moe" not in model.config.model_type
    kernels = kernels and not graphs and config.compile is not False
    runner = ModelRunner(model, packed=packed, kernels=kernels, graphs=graphs)
    budget = _cuda_budget(config, model.device) if cuda else config.cpu_memory_bytes
    memory = MemoryPlanner(
        token_bytes=runner.shape.token_bytes,
        budget=budget,
        cache_bytes=config.prefix_cache_bytes or budget // 4,
        most_slots=config.batch_size or (CUDA_SLOTS if cuda else CPU_SLOTS),
        prefill_tokens=CUDA_PREFILL if cuda else CPU_PREFILL,
    )
    return FastEngine(runner, load_qwen_prompter(config, model.config.image_token_id), memory)


def _cuda_budget(config: EngineConfig, device: torch.device) -> int:
    """Bytes for keys and values: what is allowed, less the weights and room for activations."""
    fraction = config.memory_fraction or 0.8
    torch.cuda.set_per_process_memory_fraction(fraction, device)
    allowed = int(fraction * torch.cuda.mem_get_info(device)[1])
    free = allowed - torch.cuda.memory_allocated(device)
    return max(2**28, free - max(free // 10, ACTIVATIONS))


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


def load_qwen_prompter(config: EngineConfig, image_token_id: int) -> Prompter:
    """The prompter of a Qwen-VL model."""
    return load_prompter(
        config.model,
        revision=config.revision,
        image_token_id=image_token_id,
        min_pixels=config.min_pixels,
        max_pixels=config.max_pixels,
    )


def resolve_device(name: str) -> torch.device:
    """The torch device of a configuration's ``device``."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def resolve_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The weights' type: bfloat16 on CUDA and float32 on a CPU, where none is named (decision 4)."""
    if name is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def _kind(config: EngineConfig, family: str) -> str:
    if config.kind == "auto":
        return "fast" if family in FAST_FAMILIES else "plain"
    if config.kind == "fast" and family not in FAST_FAMILIES:
        raise ValueError(f"kind: the fast engine knows {', '.join(FAST_FAMILIES)}, not {family}")
    return config.kind


def model_config(config: EngineConfig) -> Any:
    """The model's own configuration, without its weights."""
    return AutoConfig.from_pretrained(config.model, revision=config.revision, trust_remote_code=False)
