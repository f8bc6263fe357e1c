"""Qwen3-VL's text layers with what lies between their matrix products done by our kernels, on CPUs.

transformers' own model still runs them: only the modules named here are put in the place of its own, over its
weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workers.engine.runner.cpu.kernels import Heads, Kernels
from workers.engine.runner.kv_cache import KVCache
from workers.engine.runner.packed_linear import PackedLinear


def use_kernels(language_model: Any, kernels: Kernels) -> None:
    """Put our attention, normalisation and gated products in the place of transformers'."""
    for layer in language_model.layers:
        layer.self_attn = CpuAttention(layer.self_attn, kernels)
        layer.input_layernorm = CpuNorm(layer.input_layernorm, kernels)
        layer.post_attention_layernorm = CpuNorm(layer.post_attention_layernorm, kernels)
        if _is_gated(layer.mlp):  # and no mixture of experts
            layer.mlp = CpuMlp(layer.mlp, kernels)
    language_model.norm = CpuNorm(language_model.norm, kernels)


@dataclass
class CpuMetadata:
    """What each token of a step sees; built once, used by every layer."""

    kv_cache: KVCache
    spans: np.ndarray  # (tokens, 7) int64, as the structure Token of kernels.c


class CpuAttention(nn.Module):
    """Projections, normalised and rotated heads, and attention over the three levels."""

    def __init__(self, attention: Any, kernels: Kernels) -> None:
        super().__init__()
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.qkv, self.out = joined(projections), joined([attention.o_proj])
        self._kernels, self._layer = kernels, attention.layer_idx
        self._heads = Heads(
            attention.q_proj.out_features // attention.head_dim,
            attention.q_norm.weight.detach(),
            attention.k_norm.weight.detach(),
            attention.q_norm.variance_epsilon,
            attention.scaling,
        )

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attn_metadata: CpuMetadata,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """(1, tokens, hidden) -> the same, as the module that it replaces."""
        cosine, sine = position_embeddings
        keys, values = attn_metadata.kv_cache.layer(self._layer)
        qkv, rotary = self.qkv(hidden_states[0]), (cosine[0], sine[0])
        out = self._kernels.attention(qkv, rotary, self._heads, keys, values, attn_metadata.spans)
        return self.out(out)[None], None


class CpuNorm(nn.Module):
    """Root mean square normalisation."""

    def __init__(self, norm: Any, kernels: Kernels) -> None:
        super().__init__()
        self._kernels, self._weight, self._eps = kernels, norm.weight.detach(), norm.variance_epsilon

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., hidden) -> the same."""
        return self._kernels.rms_norm(hidden_states.contiguous(), self._weight, self._eps)


class CpuMlp(nn.Module):
    """The gated feed-forward part."""

    def __init__(self, mlp: Any, kernels: Kernels) -> None:
        super().__init__()
        self.gate_up, self.down = joined([mlp.gate_proj, mlp.up_proj]), joined([mlp.down_proj])
        self._kernels = kernels

    def forward(self, x: Tensor) -> Tensor:
        """(1, tokens, hidden) -> the same."""
        out: Tensor = self.down(self._kernels.silu_mul(self.gate_up(x[0])))
        return out[None]


def _is_gated(mlp: Any) -> bool:
    linear = all(type(getattr(mlp, name, None)) is nn.Linear for name in ("gate_proj", "up_proj", "down_proj"))
    return linear and mlp.config.hidden_act in ("silu", "swish")


def joined(layers: Any) -> PackedLinear:
    """Layers over one input as one product, packed."""
    biases = [layer.bias for layer in layers]
    bias = None if biases[0] is None else torch.cat(biases)
    return PackedLinear(torch.cat([layer.weight for layer in layers]), bias)
