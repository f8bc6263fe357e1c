"""All that knows vLLM: started with our settings, fed with rendered prompts, stepped.

vLLM shares prefixes and images by itself: its prefix cache hashes tokens and images, its multimodal cache keeps what an
image was made into.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL.Image import Image

from workers.engine.api import ImageSource, SamplingParams
from workers.engine.config import EngineConfig
from workers.engine.model import resolve_device

log = logging.getLogger(__name__)

LONGEST = 16_384  # tokens of prompt and answer that vLLM reserves memory for, where the model allows as many
CPU_STEP_TOKENS = 4096  # in a step on a CPU, as vLLM's own default
IMAGE_CACHE_GB = 4  # of preprocessed images: about 600 photographs of 640x480 at Qwen3-VL's resolution


@dataclass(frozen=True)
class Finished:
    """A request that vLLM has ended."""

    name: str
    ids: list[int]  # new tokens, the end token included where there is one
    stopped: bool  # by an end token; else at its limit
    prompt_tokens: int
    probabilities: tuple[float, ...]


class Core(Protocol):
    """What the engine asks of vLLM."""

    slots: int
    """Sequences that run at once."""

    def render(self, ids: list[int], source: ImageSource, image: Image) -> Any:
        """A prompt with its image preprocessed, from any one thread. Raises ValueError where vLLM refuses it."""
        ...

    def add(self, name: str, rendered: Any, sampling: SamplingParams, candidates: Sequence[int]) -> None:
        """Queue a rendered prompt. Raises ValueError where vLLM refuses it."""
        ...

    def step(self) -> list[Finished]:
        """One step of all that runs; what it ended."""
        ...

    def close(self) -> None:
        """Stop, and free its memory."""
        ...


class VllmCore:
    """A vLLM engine with the configuration's model, memory and limits."""

    def __init__(self, config: EngineConfig, context: int, end_token_ids: Collection[int] = ()) -> None:
        """``context``: tokens of prompt and answer together; ``end_token_ids``: any of these ends a text.

        Takes as long as loading the model does.
        """
        _set_environment(config)
        from vllm import LLMEngine
        from vllm.usage.usage_lib import UsageContext

        # The offline class's defaults are made for throughput: 256 sequences, and 1,024 on GPUs of 70 GB and more.
        self._use(
            LLMEngine.from_engine_args(arguments(config, context), usage_context=UsageContext.LLM_CLASS), end_token_ids
        )

    @classmethod
    def around(cls, engine: Any) -> VllmCore:
        """Over a vLLM engine that runs already (the benchmark's, which has its own loop over it, too)."""
        core = cls.__new__(cls)
        core._use(engine)
        return core

    def _use(self, engine: Any, end_token_ids: Collection[int] = ()) -> None:
        self._engine = engine
        self._end_token_ids = end_token_ids
        self._candidates: dict[str, Sequence[int]] = {}
        self.slots = int(engine.vllm_config.scheduler_config.max_num_seqs)
        cache = engine.vllm_config.cache_config
        log.info(
            "vLLM: %d sequences at once, prefix cache %s", self.slots, "on" if cache.enable_prefix_caching else "off"
        )

    def render(self, ids: list[int], source: ImageSource, image: Image) -> Any:
        """As ``Core.render`` says; an image that was rendered before is taken from vLLM's cache."""
        from vllm.inputs import TokensPrompt

        limits = _pixel_limits(source.min_pixels, source.max_pixels)
        prompt = TokensPrompt(
            prompt_token_ids=ids,
            multi_modal_data={"image": image},
            multi_modal_uuids={"image": [f"{source.key}|{source.min_pixels}|{source.max_pixels}"]},
        )
        if limits:
            prompt["mm_processor_kwargs"] = {"size": limits}
        [rendered] = self._engine.renderer.render_cmpl([prompt])
        return rendered

    def add(self, name: str, rendered: Any, sampling: SamplingParams, candidates: Sequence[int]) -> None:
        """As ``Core.add`` says."""
        self._engine.add_request(name, rendered, sampling_params(sampling, candidates, self._end_token_ids))
        if candidates:
            self._candidates[name] = candidates

    def step(self) -> list[Finished]:
        """As ``Core.step`` says."""
        return [self._finished(output) for output in self._engine.step() if output.finished]

    def close(self) -> None:
        """As ``Core.close`` says."""
        self._engine.engine_core.shutdown()

    def _finished(self, output: Any) -> Finished:
        written = output.outputs[0]
        wanted = self._candidates.pop(output.request_id, ())
        return Finished(
            name=output.request_id,
            ids=list(written.token_ids),
            stopped=written.finish_reason == "stop",
            prompt_tokens=len(output.prompt_token_ids),
            probabilities=tuple(math.exp(written.logprobs[0][token].logprob) for token in wanted),
        )


def sampling_params(
    sampling: SamplingParams, candidates: Sequence[int] = (), end_token_ids: Collection[int] = ()
) -> Any:
    """vLLM's own, every value of decision 9 said; ``end_token_ids`` beside those that vLLM finds itself.

    A seed makes vLLM draw with a generator of the request's own, row by row: only where something is drawn.
    """
    from vllm import SamplingParams as Theirs
    from vllm.sampling_params import RequestOutputKind

    return Theirs(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=0.0,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=0.0,
        repetition_penalty=sampling.repetition_penalty,
        min_tokens=0,
        max_tokens=sampling.max_new_tokens,
        seed=sampling.seed % 2**63 if sampling.temperature > 0 else None,
        stop_token_ids=sorted(end_token_ids),
        logprob_token_ids=list(candidates) or None,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def arguments(config: EngineConfig, context: int) -> Any:
    """vLLM's arguments for a configuration."""
    from vllm import EngineArgs

    limits = _pixel_limits(config.min_pixels, config.max_pixels)
    on_cpu = resolve_device(config.device).type == "cpu"
    return EngineArgs(
        model=config.model,
        revision=config.revision,
        dtype=config.dtype or ("float32" if on_cpu else "auto"),  # as the other engines do
        max_model_len=context,
        max_num_seqs=config.batch_size,
        gpu_memory_utilization=config.memory_fraction or 0.8,
        tensor_parallel_size=config.gpus,
        limit_mm_per_prompt={"image": 1, "video": 0},
        mm_processor_kwargs={"size": limits} if limits else None,
        mm_processor_cache_gb=IMAGE_CACHE_GB,
        enable_prefix_caching=True,
        # On a CPU a seeded request whose prompt is cut in two kills vLLM 0.32 ("CPU Generator does not use offset").
        enable_chunked_prefill=not on_cpu,
        max_num_batched_tokens=max(CPU_STEP_TOKENS, context) if on_cpu else None,
        trust_remote_code=False,
        enforce_eager=config.compile is False,
        disable_log_stats=True,
    )


def _set_environment(config: EngineConfig) -> None:
    """What vLLM reads from the environment alone; what is set there already holds."""
    defaults = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": str(max(1, config.cpu_memory_bytes >> 30))}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _pixel_limits(min_pixels: int | None, max_pixels: int | None) -> dict[str, int]:
    edges = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    return {name: value for name, value in edges.items() if value}
