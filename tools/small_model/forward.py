"""A forward pass over several questions per image that computes the image once.

Exact: a question's logits are those of the model's own forward over the image and this question alone (a
test compares them). All images of a batch have the same grid, questions are padded on the right, and the
last layer is computed at the answer only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb, rotate_half
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from tools.small_model.architecture import MERGE, Layer, SmoothTables

PROBED_LAYER = 1
"""After this layer the colour at a box must be known at the box's centre."""


@dataclass(frozen=True)
class Questions:
    """Questions over a batch of images, ``questions`` for each: ids are (images * questions, length)."""

    pixels: Tensor  # (images, patches, 192), patches in the processor's order
    grid: tuple[int, int]  # patches down and across
    prefix: Tensor  # (4,) token ids before the image
    ids: Tensor  # the rest of the prompt and the answer, padded on the right
    answer_start: Tensor  # (images * questions,) where the last prompt token stands: it predicts the first
    answer_length: int  # positions to predict, from answer_start on
    probes: Tensor  # (2,) indices of the second numbers of the two centres


@dataclass(frozen=True)
class Outputs:
    """What a training step needs of a forward pass."""

    logits: Tensor  # (images * questions, answer_length, vocabulary)
    visual: Tensor  # (images, tokens, width): the image's tokens as they enter the text model
    at_centres: Tensor  # (images * questions, 2, width)


def forward(model: Qwen3VLForConditionalGeneration, tables: SmoothTables, asked: Questions) -> Outputs:
    """Logits at the answers, and the states that the probes read."""
    visual, deepstack = _see(model.model.visual, tables.place_table(), asked)
    embeddings = tables.embeddings(model.model.language_model.embed_tokens.weight)
    images, length = visual.shape[0], asked.ids.shape[1]
    before = F.embedding(asked.prefix, embeddings).expand(images, -1, -1)
    after = F.embedding(asked.ids.view(images, -1), embeddings)
    states = torch.cat([before, visual, after], 1)
    layout = _Layout(images, len(asked.prefix) + visual.shape[1], asked.ids.shape[0] // images, length)
    text = model.model.language_model
    rotary = text.rotary_emb(states, _positions(asked, layout)[:, None])
    at_centres = states
    for number, layer in enumerate(text.layers[:-1]):
        states = states + _attend(layer, states, rotary, layout)
        states = states + layer.mlp(layer.post_attention_layernorm(states))
        if number < len(deepstack):
            states = states + F.pad(deepstack[number], (0, 0, len(asked.prefix), layout.rows * length))
        if number == PROBED_LAYER:
            at_centres = layout.split(states)[1][:, asked.probes]
    answers = _answer_layer(text.layers[-1], states, rotary, layout, asked)
    return Outputs(model.lm_head(text.norm(answers)), visual, at_centres)


@dataclass(frozen=True)
class _Layout:
    """How an image's prefix and its questions lie behind each other in one row."""

    images: int
    prefix: int
    rows: int  # questions per image
    length: int

    def split(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """The prefixes (images, prefix, ...) and the questions (images * rows, length, ...)."""
        own = states[:, self.prefix :].reshape(self.images * self.rows, self.length, *states.shape[2:])
        return states[:, : self.prefix], own


def _see(visual: Layer, places: Tensor, asked: Questions) -> tuple[Tensor, list[Tensor]]:
    weight = visual.patch_embed.proj.weight.sum(2).flatten(1)  # a still image is the same frame twice
    states = F.linear(asked.pixels, weight, visual.patch_embed.proj.bias)
    grid = torch.tensor([[1, *asked.grid]])
    index, share = _interpolation(asked.grid, visual.num_grid_per_side)
    states = states + (places[index] * share[:, :, None]).sum(1)
    cos, sin = visual.rotary_pos_emb(states, get_vision_position_ids(grid, MERGE))
    deepstack = []
    for number, block in enumerate(visual.blocks):
        states = states + _look_around(block.attn, block.norm1(states), cos, sin)
        states = states + block.mlp(block.norm2(states))
        if number in visual.deepstack_visual_indexes:
            merger = visual.deepstack_merger_list[visual.deepstack_visual_indexes.index(number)]
            deepstack.append(_merge(merger, states))
    return _merge(visual.merger, states), deepstack


@lru_cache(maxsize=64)
def _interpolation(grid: tuple[int, int], side: int) -> tuple[Tensor, Tensor]:
    index, share = get_vision_interpolation_indices_and_weights(
        torch.tensor([[1, *grid]]),
        num_grid_per_side=side,
        mode="bilinear",
        align_corners=True,
        spatial_merge_size=MERGE,
    )
    return index, share


def _merge(merger: Layer, states: Tensor) -> Tensor:
    images, patches, width = states.shape
    merged: Tensor = merger(states.reshape(-1, width))
    return merged.view(images, patches // MERGE**2, -1)


def _look_around(attention: Layer, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    images, patches, width = states.shape
    qkv = attention.qkv(states).view(images, patches, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key = (x * cos + rotate_half(x) * sin for x in (qkv[0], qkv[1]))
    seen = F.scaled_dot_product_attention(query, key, qkv[2])
    projected: Tensor = attention.proj(seen.transpose(1, 2).reshape(images, patches, width))
    return projected


def _positions(asked: Questions, layout: _Layout) -> Tensor:
    """(3, prefix + rows * length): time, height and width, as the model's get_rope_index has them."""
    down, across = (side // MERGE for side in asked.grid)
    start = len(asked.prefix)
    y, x = torch.meshgrid(torch.arange(down), torch.arange(across), indexing="ij")
    image = start + torch.stack([torch.zeros_like(y), y, x]).flatten(1)
    question = start + max(down, across) + torch.arange(layout.length).repeat(layout.rows)
    return torch.cat([torch.arange(start).expand(3, -1), image, question.expand(3, -1)], 1)


def _project(layer: Layer, states: Tensor, which: str) -> Tensor:
    """Heads of the queries, keys or values: (batch, length, heads, head width)."""
    attention = layer.self_attn
    heads: Tensor = getattr(attention, f"{which}_proj")(states).unflatten(-1, (-1, attention.head_dim))
    normed: Tensor = getattr(attention, f"{which}_norm")(heads) if which in "qk" else heads
    return normed


def _attend(layer: Layer, states: Tensor, rotary: tuple[Tensor, Tensor], layout: _Layout) -> Tensor:
    normed = layer.input_layernorm(states)
    query, key, value = (_project(layer, normed, which) for which in "qkv")
    query, key = apply_rotary_pos_emb(query, key, *rotary, unsqueeze_dim=2)
    (prefix_q, own_q), (prefix_k, own_k), (prefix_v, own_v) = (layout.split(x) for x in (query, key, value))
    heads_q, heads_k, heads_v = (x.transpose(1, 2) for x in (prefix_q, prefix_k, prefix_v))
    first = F.scaled_dot_product_attention(heads_q, heads_k, heads_v, is_causal=True, enable_gqa=True).transpose(1, 2)
    mask = torch.ones(layout.length, layout.length, dtype=torch.bool).tril()
    own = _over_prefix(own_q, (prefix_k, own_k), (prefix_v, own_v), mask, layout)
    first, own = first.flatten(2), own.flatten(2)
    together = torch.cat([first, own.view(layout.images, -1, own.shape[2])], 1)
    attended: Tensor = layer.self_attn.o_proj(together)
    return attended


def _over_prefix(
    query: Tensor, keys: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor], mask: Tensor, layout: _Layout
) -> Tensor:
    """Attention of each question to its image's prefix and to itself, in the shape of ``query``."""
    key, value = (_joined(*pair, layout) for pair in (keys, values))
    full = F.pad(mask, (layout.prefix, 0), value=True)
    full = full if full.ndim == 2 else full[:, None]
    seen = F.scaled_dot_product_attention(query.transpose(1, 2), key, value, attn_mask=full, enable_gqa=True)
    return seen.transpose(1, 2)


def _joined(prefix: Tensor, own: Tensor, layout: _Layout) -> Tensor:
    repeated = prefix[:, None].expand(-1, layout.rows, -1, -1, -1).reshape(-1, *prefix.shape[1:])
    return torch.cat([repeated, own], 1).transpose(1, 2)


def _answer_layer(
    layer: Layer, states: Tensor, rotary: tuple[Tensor, Tensor], layout: _Layout, asked: Questions
) -> Tensor:
    """The last layer, at the positions of the answers alone: (images * rows, answer_length, width)."""
    normed = layer.input_layernorm(states)
    key, value = (_project(layer, normed, which) for which in "kv")
    cos, sin = rotary
    key = key * cos[:, :, None] + rotate_half(key) * sin[:, :, None]
    (prefix_k, own_k), (prefix_v, own_v) = layout.split(key), layout.split(value)
    at = asked.answer_start[:, None] + torch.arange(asked.answer_length)
    row = torch.arange(len(at))[:, None]
    kept = layout.split(states)[1][row, at]
    query = _project(layer, layer.input_layernorm(kept), "q")
    own_cos, own_sin = (x[0, layout.prefix : layout.prefix + layout.length][at][:, :, None] for x in rotary)
    query = query * own_cos + rotate_half(query) * own_sin
    mask = torch.arange(layout.length) <= at[:, :, None]
    seen = _over_prefix(query, (prefix_k, own_k), (prefix_v, own_v), mask, layout)
    attended: Tensor = layer.self_attn.o_proj(seen.flatten(2))
    kept = kept + attended
    added: Tensor = layer.mlp(layer.post_attention_layernorm(kept))
    return kept + added
