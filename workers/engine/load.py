"""From a configuration to a running engine: which one it is follows from the model's own configuration."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any

import torch

from workers.engine.api import CannotServe, Engine
from workers.engine.config import CUDA_ROWS, EngineConfig
from workers.engine.hf.engine import HfEngine
from workers.engine.hf.model_inputs import ProcessorInputs, QwenInputs
from workers.engine.model import (
    CheckpointError,
    context_length,
    load_model,
    model_config,
    quantization,
    resolve_device,
    weight_bytes,
)
from workers.engine.openmp import release_team
from workers.engine.packed.capacity import kv_budget
from workers.engine.packed.engine import PackedEngine
from workers.engine.packed.memory_planner import MemoryPlanner, PagedPlanner, Planner
from workers.engine.processor import InputProcessor, load_processor
from workers.engine.runner.backend import Backend
from workers.engine.runner.cpu.cpu_backend import cpu_backend
from workers.engine.runner.kv_cache import KVShape
from workers.engine.runner.model_runner import ModelRunner
from workers.engine.runner.paged.paged_backend import paged_backend
from workers.engine.runner.torch.torch_backend import TorchBackend

log = logging.getLogger(__name__)

CPU_SLOTS = 128  # beyond these a step grows as fast as its rows do
CPU_PREFILL, CUDA_PREFILL = 4096, 8192  # prompt tokens in one step
DEFAULT_FRACTION = 0.8  # of a GPU's memory

INSTALL_VLLM = "pip install '.[vllm]' -c constraints-vllm.txt"
PACKED_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")


def load_engine(config: EngineConfig) -> Engine:
    """Load the model and start its engine.

    Raises ``OSError`` where the model cannot be found, ``ValueError`` where the configuration does not fit it, and
    ``CannotServe`` for a checkpoint whose texts would be noise.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    own = model_config(config)
    family = own.model_type
    name = _engine_name(config, family, quantization(own))
    log.info("model %s (%s): the %s engine", config.model, family, name)
    if name == "vllm":
        return _vllm(config)
    if resolve_device(config.device).type == "cuda" and name == "builtin":
        _refuse_too_large(config)
    # What is wrong with tokenizer or processor shows before minutes of loading.
    if family not in PACKED_FAMILIES:
        inputs = ProcessorInputs(config.model, config.revision)
        return HfEngine(_load_model(config), inputs, config.batch_size)
    processor = load_qwen_processor(config, own.image_token_id)
    model = _load_model(config)
    if name == "builtin":
        return packed_engine(config, model, processor)
    release_team()
    return HfEngine(model, QwenInputs(processor, model), config.batch_size)


def _load_model(config: EngineConfig) -> Any:
    try:
        return load_model(config)
    except CheckpointError as error:
        raise CannotServe(str(error)) from error
    except ImportError as error:  # transformers' messages begin with an empty line
        raise CannotServe(f"{config.model}: {' '.join(str(error).split())}") from error


def _vllm(config: EngineConfig) -> Engine:
    from workers.engine.vllm.core import LONGEST, VllmCore  # an optional extra
    from workers.engine.vllm.engine import VllmEngine

    own = model_config(config)
    context = min(context_length(own), LONGEST)
    processor = load_qwen_processor(config, own.image_token_id)
    return VllmEngine(VllmCore(config, context, processor.end_token_ids), processor, context)


def packed_engine(
    config: EngineConfig,
    model: Any,
    processor: InputProcessor | None = None,
    *,
    pack_weights: bool = True,
    kernels: bool = True,
) -> PackedEngine:
    """The packed engine over a loaded model, which it changes in place; its ``processor``, if it is at hand.

    ``pack_weights``: lay the weights out for the CPU; ``kernels``: and use the compiled kernels, where they fit.
    """
    cuda = model.device.type == "cuda"
    runner = ModelRunner(model, _backend(config, model, pack_weights=pack_weights, kernels=kernels))
    shape = runner.kv_cache.shape
    budget = _cuda_budget(config, model.device, shape.token_bytes) if cuda else config.cpu_memory_bytes
    slots = config.batch_size or (CUDA_ROWS if cuda else CPU_SLOTS)
    prefill = CUDA_PREFILL if cuda else CPU_PREFILL
    memory: Planner
    if runner.block_tokens:
        memory = PagedPlanner(shape.token_bytes, budget, slots, prefill, runner.block_tokens)
    else:
        cache_bytes = config.prefix_cache_bytes or budget // 4
        memory = MemoryPlanner(shape.token_bytes, budget, cache_bytes, slots, prefill)
    release_team()
    return PackedEngine(runner, processor or load_qwen_processor(config, model.config.image_token_id), memory)


def _backend(config: EngineConfig, model: Any, *, pack_weights: bool, kernels: bool) -> Backend:
    cuda = model.device.type == "cuda"
    graphs = cuda if config.compile is None else config.compile
    if (cuda or config.compile) and (paged := paged_backend(model, graphs=graphs)):
        return paged
    compiled = pack_weights and kernels and not graphs and config.compile is not False
    backend = cpu_backend(model) if compiled else None
    return backend or TorchBackend(pack_weights=pack_weights, graphs=graphs)


def _cuda_budget(config: EngineConfig, device: torch.device, token_bytes: int) -> int:
    """Bytes for keys and values beside what is allocated now. Raises ``TooLittleMemory``."""
    fraction = config.memory_fraction or DEFAULT_FRACTION
    torch.cuda.set_per_process_memory_fraction(fraction, device)
    total, weights = torch.cuda.mem_get_info(device)[1], torch.cuda.memory_allocated(device)
    return kv_budget(total, fraction, weights, token_bytes)


def _refuse_too_large(config: EngineConfig) -> None:
    """Raise ``TooLittleMemory`` before minutes of loading end in it."""
    total = torch.cuda.mem_get_info(resolve_device(config.device))[1]
    shape = KVShape.of_config(model_config(config), torch.bfloat16 if config.dtype != "float32" else torch.float32)
    kv_budget(total, config.memory_fraction or DEFAULT_FRACTION, weight_bytes(config), shape.token_bytes)


def load_qwen_processor(config: EngineConfig, image_token_id: int) -> InputProcessor:
    """The processor of a Qwen-VL model."""
    return load_processor(
        config.model,
        revision=config.revision,
        image_token_id=image_token_id,
        min_pixels=config.min_pixels,
        max_pixels=config.max_pixels,
    )


def knows_family(config: EngineConfig) -> bool:
    """Whether the model is of a family that the builtin and the vLLM engine know."""
    return model_config(config).model_type in PACKED_FAMILIES


def _engine_name(config: EngineConfig, family: str, quantized: str | None) -> str:
    """The engine of a configuration. Raises CannotServe where it cannot serve the model, ValueError for its family."""
    needs = f"{quantized} weights" if quantized else "several GPUs for one model" if config.gpus > 1 else ""
    if config.engine == "vllm" or (config.engine == "auto" and needs):
        if family not in PACKED_FAMILIES:
            raise CannotServe(f"{config.model}: the vLLM engine knows {', '.join(PACKED_FAMILIES)}, not {family}")
        if find_spec("vllm") is None:
            raise CannotServe(f"{config.model}: {needs or 'this engine'} needs vLLM: {INSTALL_VLLM}")
        return "vllm"
    if needs:
        raise CannotServe(f"{config.model}: {needs}: not for engine {config.engine}, but for vllm: {INSTALL_VLLM}")
    if config.engine == "auto":
        return "builtin" if family in PACKED_FAMILIES else "transformers"
    if config.engine == "builtin" and family not in PACKED_FAMILIES:
        raise ValueError(f"engine: the packed engine knows {', '.join(PACKED_FAMILIES)}, not {family}")
    return config.engine
