"""The small Qwen3-VL: its configuration and its first weights.

Everything is transformers' own Qwen3VL classes. What is special is where the weights start: positions are
written as waves. A number token n holds the waves of n/1000, a patch those of its place, and one attention
head of the second layer compares the two: "which patches lie at this box" need not be found in noise.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

PATCH, MERGE = 8, 2
MIN_PIXELS, MAX_PIXELS = 96 * 96, 160 * 160
PLACES = 18
"""Side of the grid of learned places; patches of another grid are interpolated between them."""

CYCLES = (0.5, 1.0, 2.0, 3.0, 4.5)
"""Waves that numbers and places share, in cycles per image."""
FINE_CYCLES = (0.25, 8.0, 16.0)
"""Waves of numbers alone: whether two boxes touch hangs on a few thousandths."""
NUMBER_DIM, IMAGE_DIM, COPY_DIM = 127, 126, 32


def model_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """The configuration: 2 M parameters, grouped-query attention and deepstack as in the real model."""
    ids = tokenizer.convert_tokens_to_ids
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 128, "intermediate_size": 320,
            "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 5e6,
                "mrope_section": [6, 5, 5], "mrope_interleaved": True,
            },
            "tie_word_embeddings": False, "pad_token_id": None,
        },
        vision_config={
            "depth": 3, "hidden_size": 96, "intermediate_size": 256, "num_heads": 3, "patch_size": PATCH,
            "spatial_merge_size": MERGE, "temporal_patch_size": 2, "out_hidden_size": 128,
            "num_position_embeddings": PLACES**2, "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )  # fmt: skip
    return config


def first_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3VLForConditionalGeneration:
    """An untrained model in float32, the same for the same seed."""
    torch.manual_seed(seed)
    config = model_config(tokenizer)
    config._attn_implementation = "sdpa"
    model = Qwen3VLForConditionalGeneration(config).float()
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]),
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.no_grad():
        _scale_weights(model)
        _pass_places_through(model.model.visual.merger)
        _copy_the_number_before(model.model.language_model.layers[0].self_attn)
        _match_places(model.model.language_model.layers[1].self_attn)
    return model


Layer = Any
"""A module of transformers, by whose attributes no type goes."""


class SmoothTables(nn.Module):
    """Number embeddings and patch places as maps of waves: what is learned of 250 holds for 251."""

    number_basis: Tensor
    is_number: Tensor
    place_basis: Tensor

    def __init__(self, tokenizer: PreTrainedTokenizerFast, text_dim: int = 128, vision_dim: int = 96) -> None:
        super().__init__()
        numbers = torch.arange(1000) / 1000
        basis = torch.zeros(len(tokenizer), 2 * len(CYCLES + FINE_CYCLES) + 2)
        ids = torch.tensor(tokenizer.convert_tokens_to_ids([str(n) for n in range(1000)]))
        basis[ids] = torch.cat([waves(numbers, CYCLES + FINE_CYCLES), 2 * numbers[:, None] - 1, torch.ones(1000, 1)], 1)
        self.register_buffer("number_basis", basis, persistent=False)
        self.register_buffer("is_number", basis[:, -1:] > 0, persistent=False)
        side = (torch.arange(PLACES) + 0.5) / PLACES
        y, x = torch.meshgrid(side, side, indexing="ij")
        both = [waves(x.flatten(), CYCLES), waves(y.flatten(), CYCLES), torch.ones(PLACES**2, 1)]
        self.register_buffer("place_basis", torch.cat(both, 1), persistent=False)
        self.numbers = nn.Parameter(_number_map(basis.shape[1], text_dim))
        self.places = nn.Parameter(_place_map(4 * len(CYCLES) + 1, vision_dim))

    def embeddings(self, learned: Tensor) -> Tensor:
        """The embedding table: the learned rows, but for numbers their waves' image."""
        return torch.where(self.is_number, self.number_basis @ self.numbers, learned)

    def place_table(self) -> Tensor:
        """(PLACES squared, vision width): what the vision tower adds to the patches."""
        return self.place_basis @ self.places

    @torch.no_grad()
    def read_from(self, model: Qwen3VLForConditionalGeneration) -> None:
        """Take over the tables of a model that ``write_into`` made."""
        embeddings, numbers = model.model.language_model.embed_tokens.weight, self.is_number[:, 0]
        self.numbers.copy_(torch.linalg.lstsq(self.number_basis[numbers].double(), embeddings[numbers].double())[0])
        places = model.model.visual.pos_embed.weight
        self.places.copy_(torch.linalg.lstsq(self.place_basis.double(), places.double())[0])

    @torch.no_grad()
    def write_into(self, model: Qwen3VLForConditionalGeneration) -> None:
        """Make the model's own tables equal to these, for saving."""
        learned = model.model.language_model.embed_tokens.weight
        learned.copy_(self.embeddings(learned))
        model.model.visual.pos_embed.weight.copy_(self.place_table())


def waves(at: Tensor, cycles: tuple[float, ...]) -> Tensor:
    """Cosine and sine of each frequency at places in 0..1: (n, 2 * frequencies), in pairs."""
    angle = 2 * math.pi * at[:, None] * torch.tensor(cycles)
    return torch.stack([angle.cos(), angle.sin()], -1).flatten(1)


def _number_map(rows: int, dim: int) -> Tensor:
    table = 0.02 * torch.randn(rows, dim)
    table[torch.arange(rows - 1), torch.arange(rows - 1)] = 1.0
    table[-1] = 0.3 * torch.randn(dim)
    table[-1, NUMBER_DIM] = 2.5
    return table


def _place_map(rows: int, dim: int) -> Tensor:
    table = 0.02 * torch.randn(rows, dim)
    table[torch.arange(rows - 1), torch.arange(rows - 1)] = 1.0
    return table


def _scale_weights(model: Qwen3VLForConditionalGeneration) -> None:
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            continue
        fan_in = int(np.prod(weight.shape[1:]))
        std = 1 / math.sqrt(fan_in)
        if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight", "mlp.linear_fc2.weight")):
            std *= 0.3
        elif "embed_tokens" in name:
            std = 0.5
        elif "lm_head" in name or ("deepstack_merger_list" in name and "fc2" in name):
            std *= 0.3
        weight.normal_(0, std)


def _pass_places_through(merger: Layer) -> None:
    """Units of the merger that carry the mean place of four patches through its GELU's linear part."""
    dims, width, bias = 4 * len(CYCLES), merger.hidden_size // MERGE**2, 2.5
    unit = torch.arange(dims)
    merger.linear_fc1.weight[unit] = 0.0
    for patch in range(MERGE**2):
        merger.linear_fc1.weight[unit, patch * width + unit] = 0.25
    merger.linear_fc1.bias[unit] = bias
    merger.linear_fc2.weight[:, unit] *= 0.1
    merger.linear_fc2.weight[unit] *= 0.1
    merger.linear_fc2.weight[unit, unit] = 1.0
    merger.linear_fc2.bias[unit] = -bias
    merger.linear_fc2.bias[IMAGE_DIM] = 2.5


def _copy_the_number_before(attention: Layer) -> None:
    """Head 0: a number looks two tokens back (past the comma) and copies the waves it finds there."""
    pairs = torch.arange(3)
    turn = 2 * 5e6 ** (-pairs / 16.0)
    query, key = attention.q_proj.weight, attention.k_proj.weight
    query[:32] *= 0.1
    key[:32] *= 0.1
    query[pairs, NUMBER_DIM], query[pairs + 16, NUMBER_DIM] = 2 * turn.cos(), -2 * turn.sin()
    key[pairs, NUMBER_DIM] = 2.0
    dims = torch.arange(2 * len(CYCLES))
    value, output = attention.v_proj.weight, attention.o_proj.weight
    value[:32] *= 0.1
    value[dims, dims] = 1.0
    output[:, :32] *= 0.1
    output[COPY_DIM + dims, dims] = 1.0


def _match_places(attention: Layer) -> None:
    """Head 0: a centre's second number compares both numbers' waves with those of the image's tokens."""
    query, key = attention.q_proj.weight, attention.k_proj.weight
    query[:32] *= 0.1
    key[:32] *= 0.1
    wave = torch.arange(len(CYCLES))
    # rotary pairs (i, i + 16) from 5 on hardly turn over a prompt's length
    for part in (0, 1):
        x_slot, y_slot = 5 + 16 * part + wave, 10 + 16 * part + wave
        query[x_slot, COPY_DIM + 2 * wave + part] = 1.0
        query[y_slot, 2 * wave + part] = 1.0
        key[x_slot, 2 * wave + part] = 1.0
        key[y_slot, 2 * len(CYCLES) + 2 * wave + part] = 1.0
    query[15, NUMBER_DIM], key[15, IMAGE_DIM] = 1.0, 1.0
    attention.q_norm.weight.fill_(1.5)
