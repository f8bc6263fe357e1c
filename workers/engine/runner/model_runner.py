"""All that touches tensors of the model: encode an image's prefix, run packed steps, draw the next tokens.

The model is transformers' own, called at its language model with embeddings and positions. Where its attention layers
are left in place they call back ``batch_attention``, which hands their queries, keys and values to the step's batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface

from workers.engine.model import context_length
from workers.engine.processor import Pixels
from workers.engine.runner.backend import Backend, Batch
from workers.engine.runner.step import (
    DecodeToken,
    KVCacheSizes,
    KVCacheSlots,
    KVSpan,
    PrefillChunk,
    SamplingMetadata,
    StepOutput,
)
from workers.engine.sampling import adjusted, choose, next_probabilities, uniforms

ATTENTION = "batch_attention"


class ModelRunner:
    """One Qwen-VL model on one device, run by one backend, which is installed into it for good."""

    def __init__(self, model: Any, backend: Backend) -> None:
        self.model, self.device = model, model.device
        model.set_attn_implementation({"text_config": ATTENTION})
        self.kv_cache = backend.install(model)
        self.context_length = context_length(model.config)
        self._backend = backend
        self.block_tokens = backend.block_tokens
        self.frees_before_resize = bool(backend.block_tokens) or self.device.type == "cuda"
        self._forward = backend.compile(partial(forward, model))

    @torch.inference_mode()
    def encode(self, token_ids: list[int], pixels: Pixels, span: KVSpan) -> int:
        """Compute an image's prefix into a span of the images; gives the rotary position of the token after it.

        ``token_ids`` are the prompt's up to the last visual one.
        """
        inner = self.model.model
        ids = torch.tensor([token_ids], device=self.device)
        grid = pixels.grid.to(self.device)
        visual = ids == self.model.config.image_token_id
        features = inner.get_image_features(pixels.values.to(self.device), grid, return_dict=True)
        embeds = inner.get_input_embeddings()(ids)
        embeds[visual] = torch.cat(list(features.pooler_output)).to(embeds.dtype)
        positions, next_position = self._positions(ids, visual, grid)
        inner.language_model(
            inputs_embeds=embeds,
            position_ids=positions,
            use_cache=False,
            attn_metadata=self._backend.prepare_prefix(span),
            **_deepstack(features, visual),
        )
        return next_position

    @torch.inference_mode()
    def step(
        self, decode: Sequence[DecodeToken], prefill: Sequence[PrefillChunk], sampling: SamplingMetadata
    ) -> StepOutput:
        """Run one step; its rows are the ``decode`` tokens and then each chunk that is not shared."""
        logits = self._forward(self._backend.prepare_step(decode, prefill))
        probabilities = next_probabilities(logits, sampling.candidates)  # of the logits as they are
        return StepOutput(self._choose(adjusted(logits, sampling.written), sampling), probabilities)

    def _choose(self, logits: Tensor, sampling: SamplingMetadata) -> list[int]:
        if not any(sampling.temperatures):
            return list(choose(logits, None, None).tolist())
        seeds, steps = (np.array(each, dtype=np.uint64) for each in (sampling.seeds, sampling.steps))
        numbers = torch.from_numpy(uniforms(seeds, steps)).to(self.device)
        temperatures = torch.tensor(sampling.temperatures, dtype=torch.float32, device=self.device)
        return list(self._backend.choose(logits, temperatures, numbers).tolist())

    def resize_kv_cache(self, sizes: KVCacheSizes, keep: KVCacheSlots) -> None:
        """Give the KV cache other sizes, with what the slots ``keep`` hold."""
        self._backend.resize(sizes, keep)

    def stats(self) -> dict[str, float]:
        """The backend's counters."""
        return self._backend.stats()

    def release_kv_cache(self) -> None:
        """Free all keys and values."""
        self._backend.release()

    def _positions(self, ids: Tensor, visual: Tensor, grid: Tensor) -> tuple[Tensor, int]:
        """Rotary positions of a prefix (3, 1, tokens), by the model's own rule, and that of a text token after it."""
        after = torch.cat([ids, torch.zeros_like(ids[:, :1])], dim=1)
        types = torch.cat([visual, torch.zeros_like(visual[:, :1])], dim=1).int()
        positions, _ = self.model.model.get_rope_index(
            after, mm_token_type_ids=types, image_grid_thw=grid, attention_mask=torch.ones_like(after)
        )
        return positions[:, :, :-1], int(positions[0, 0, -1])


def forward(model: Any, batch: Batch) -> Tensor:
    """A step's logits (rows, vocabulary)."""
    inner = model.model
    hidden: Tensor = inner.language_model(
        inputs_embeds=inner.get_input_embeddings()(batch.token_ids)[None],
        position_ids=batch.positions.expand(3, 1, -1),
        use_cache=False,
        attn_metadata=batch,
    ).last_hidden_state[0]
    logits: Tensor = model.lm_head(hidden if batch.logits_indices is None else hidden[batch.logits_indices])
    return logits


def batch_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As ``AttentionInterface`` wants it: (1, heads, tokens, size) in, (1, tokens, heads, size) out."""
    tokens = [tensor[0].transpose(0, 1) for tensor in (query * scaling, key, value)]
    return kwargs["attn_metadata"].attend(module.layer_idx, *tokens)[None], None


AttentionInterface.register(ATTENTION, batch_attention)


def _deepstack(features: Any, visual: Tensor) -> dict[str, Any]:
    """Qwen3-VL's image features for its first layers, as its language model takes them; none in older families."""
    levels = getattr(features, "deepstack_features", None)
    if levels is None:
        return {}
    joined = [torch.cat(list(level)) if isinstance(level, (list, tuple)) else level for level in levels]
    return {"visual_pos_masks": visual, "deepstack_visual_embeds": joined}
