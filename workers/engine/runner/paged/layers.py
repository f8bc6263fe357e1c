"""Qwen-VL's text layers over fused operators: about eleven launches each instead of a hundred.

The weights are the checkpoint's own. Those of layers over one input are joined, and transformers' modules, which
still encode images, keep views of the joined ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from workers.engine.runner.paged import ops
from workers.engine.runner.paged.batch import PagedBatch


@dataclass(frozen=True)
class Product:
    """Linear layers over one input."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, in) -> (rows, out of all)."""
        return linear(x, self.weight, self.bias)


def joined(modules: list[Any]) -> Product:
    """The layers as one, which they become views of: no weight is there twice once this returns."""
    weight = torch.cat([module.weight.detach() for module in modules])
    biases = [module.bias for module in modules]
    bias = None if biases[0] is None else torch.cat([each.detach() for each in biases])
    start = 0
    for module in modules:
        end = start + module.weight.shape[0]
        module.weight.data = weight[start:end]
        if bias is not None:
            module.bias.data = bias[start:end]
        start = end
    return Product(weight, bias)


class TextLayer:
    """One decoder layer."""

    def __init__(self, layer: Any) -> None:
        attention = layer.self_attn
        self.index = attention.layer_idx
        self.qkv = joined([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out = joined([attention.o_proj])
        norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        self.head_norms = [None if norm is None else norm.weight.detach() for norm in norms]
        self.scale = float(attention.scaling)
        self.eps = float(layer.input_layernorm.variance_epsilon)
        self.norms = [layer.input_layernorm.weight.detach(), layer.post_attention_layernorm.weight.detach()]
        self.mlp = layer.mlp
        self.dense = all(hasattr(layer.mlp, name) for name in ("gate_proj", "up_proj", "down_proj"))
        if self.dense:
            self.gate_up, self.down = joined([layer.mlp.gate_proj, layer.mlp.up_proj]), joined([layer.mlp.down_proj])

    def __call__(self, x: Tensor, residual: Tensor | None, rotary: Tensor, batch: PagedBatch) -> tuple[Tensor, Tensor]:
        """(rows, hidden) and what is to be added to it, before and after."""
        normed, residual = ops.add_rms_norm(x, residual, self.norms[0], self.eps)
        keys, values = batch.kv_cache.keys[self.index], batch.kv_cache.values[self.index]
        qkv = self.qkv(normed)
        query = ops.rotate_and_store(qkv, *self.head_norms, self.eps, rotary, keys, values, batch.tasks.write)
        seen = batch.attend_stored(query, keys, values, self.scale)
        normed, residual = ops.add_rms_norm(self.out(seen.flatten(1)), residual, self.norms[1], self.eps)
        if not self.dense:  # a mixture of experts: transformers' own grouped products
            return self.mlp(normed[None])[0], residual
        return self.down(ops.silu_mul(self.gate_up(normed))), residual


class TextModel:
    """The language model and its head."""

    def __init__(self, model: Any) -> None:
        language_model = model.model.language_model
        self._embed = model.model.get_input_embeddings()
        self._layers = [TextLayer(layer) for layer in language_model.layers]
        self._norm, self._eps = language_model.norm.weight.detach(), float(language_model.norm.variance_epsilon)
        self._rotary, self._head = language_model.rotary_emb, model.lm_head

    def __call__(self, batch: PagedBatch) -> Tensor:
        """A step's logits (rows, vocabulary)."""
        x: Tensor = self._embed(batch.token_ids)
        residual: Tensor | None = None
        rotary = self._cosine_and_sine(batch.positions, x.dtype)
        for layer in self._layers:
            x, residual = layer(x, residual, rotary, batch)
        if batch.logits_indices is not None:
            x = x[batch.logits_indices]
            residual = None if residual is None else residual[batch.logits_indices]
        normed, _ = ops.add_rms_norm(x, residual, self._norm, self._eps)
        logits: Tensor = self._head(normed)
        return logits

    def _cosine_and_sine(self, positions: Tensor, dtype: torch.dtype) -> Tensor:
        """(2, rows, head size): a text token's three rotary positions are equal, so all frequencies go by one."""
        angles = positions[:, None].float() * self._rotary.inv_freq.float()
        halves = torch.stack((angles.cos(), angles.sin())) * self._rotary.attention_scaling
        rotary: Tensor = halves.repeat(1, 1, 2).to(dtype)
        return rotary
