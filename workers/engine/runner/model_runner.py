"""All that touches tensors of the model: encode an image's prefix, run packed steps, choose the next tokens.

The model is transformers' own, called at its language model with embeddings and positions; the attention it
calls back is ours (``attention.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from workers.engine.fault_isolation import is_device_lost, is_out_of_memory
from workers.engine.processor import Pixels
from workers.engine.runner.cpu.kernels import load_kernels
from workers.engine.runner.cpu.layers import FAMILIES, use_kernels
from workers.engine.runner.cpu.metadata import CpuBatch, CpuMetadata, pack_cpu, prefix_tokens
from workers.engine.runner.kv_cache import BLOCK, KVShape, KVStack, Stacks
from workers.engine.runner.packed_linear import PackedLinear, can_pack, pack_linears
from workers.engine.runner.step import DecodeToken, PrefillChunk, order_of
from workers.engine.runner.torch.attention import NAME
from workers.engine.runner.torch.batch import TorchBatch, pack
from workers.engine.runner.torch.graphs import DecodeGraphs
from workers.engine.sampling import choose, uniforms

log = logging.getLogger(__name__)


class ModelRunner:
    """One Qwen-VL model on one device, and the keys and values in its memory."""

    def __init__(self, model: Any, *, packed: bool = True, kernels: bool = False, graphs: bool = False) -> None:
        """``packed``: weights laid out for the CPU; ``kernels``: and our own kernels between them, where they can be
        had; ``graphs``: decoding steps of fixed shapes (``DecodeGraphs``).
        """
        self.model = model
        self.device = model.device
        model.set_attn_implementation({"text_config": NAME})
        text = model.config.get_text_config()
        head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self.shape = KVShape(text.num_hidden_layers, text.num_key_value_heads, head_size, model.dtype, self.device)
        self.stacks = Stacks(*(KVStack(self.shape, 0, 0) for _ in range(3)))
        self._compiled = packed and kernels and self._use_kernels()
        if packed:
            pack_linears(model.model.language_model)
            if can_pack(model.lm_head.weight):
                model.lm_head = PackedLinear(model.lm_head.weight, None)
        on_cuda = self.device.type == "cuda"
        self._graphs = DecodeGraphs(self._logits, self.device, capture=on_cuda) if graphs else None

    def _use_kernels(self) -> bool:
        """Put our kernels into the model's layers where they fit and can be compiled; gives whether they are there."""
        fits = self.model.config.model_type in FAMILIES and self.shape.head_size % BLOCK == 0
        if not fits or not can_pack(self.model.lm_head.weight):
            return False
        kernels = load_kernels()
        if kernels is not None:
            use_kernels(self.model.model.language_model, kernels)
        return kernels is not None

    @torch.inference_mode()
    def encode(self, ids: list[int], pixels: Pixels, slot: int) -> int:
        """Compute an image's prefix into a slot of the images' stack; gives the next rotary position.

        ``ids`` are the prompt's tokens up to the last visual one.
        """
        inner = self.model.model
        tokens = torch.tensor([ids], device=self.device)
        grid = pixels.grid.to(self.device)
        visual = tokens == self.model.config.image_token_id
        features = inner.get_image_features(pixels.values.to(self.device), grid, return_dict=True)
        embeds = inner.get_input_embeddings()(tokens)
        embeds[visual] = torch.cat(list(features.pooler_output)).to(embeds.dtype)
        positions, next_position = self._positions(tokens, visual, grid)
        deepstack = getattr(features, "deepstack_features", None)
        kwargs = (
            {}
            if deepstack is None
            else {
                "visual_pos_masks": visual,
                "deepstack_visual_embeds": [
                    torch.cat(list(f)) if isinstance(f, (list, tuple)) else f for f in deepstack
                ],
            }
        )
        inner.language_model(
            inputs_embeds=embeds,
            position_ids=positions,
            use_cache=False,
            engine_step=self._prefix_step(len(ids), slot),
            **kwargs,
        )
        return next_position

    @torch.inference_mode()
    def step(self, rows: list[DecodeToken], chunks: list[PrefillChunk]) -> tuple[Tensor, list[int]]:
        """Run one step; gives the logits (rows + own chunks, vocabulary) and, for those after the rows',
        which of ``chunks`` each belongs to.
        """
        if rows and not chunks and (replayed := self._replayed(rows)) is not None:
            return replayed, []
        batch = pack_cpu(rows, chunks, self.stacks) if self._compiled else self._torch_batch(rows, chunks)
        return self._logits(batch), order_of(chunks)

    def _torch_batch(self, rows: list[DecodeToken], chunks: list[PrefillChunk]) -> TorchBatch:
        return pack(rows, chunks, self.stacks, self.device)

    def _replayed(self, rows: list[DecodeToken]) -> Tensor | None:
        """Logits of a decoding step run in a fixed shape; None where that is off, or turns out not to work here."""
        if self._graphs is None:
            return None
        try:
            return self._graphs.run(rows, self.stacks)
        except RuntimeError as error:  # a model or driver that does what no graph can record
            if is_out_of_memory(error) or is_device_lost(error):
                raise
            log.warning("steps cannot be replayed as graphs here, they run kernel by kernel: %s", error)
            self._graphs = None
            return None

    @torch.inference_mode()
    def choose(self, logits: Tensor, temperatures: np.ndarray, seeds: np.ndarray, steps: np.ndarray) -> list[int]:
        """Next token of each row by its own sampling (``sampling.choose``)."""
        if not temperatures.any():
            return list(choose(logits, None, None).tolist())
        numbers = torch.from_numpy(uniforms(seeds, steps)).to(self.device)
        return list(choose(logits, torch.from_numpy(temperatures).to(self.device), numbers).tolist())

    def resize(self, sizes: list[tuple[int, int]], keep: list[Iterable[int]]) -> None:
        """Make the stacks of images, groups and own of these (slots, capacity), with what the slots ``keep`` hold."""
        old = (self.stacks.images, self.stacks.groups, self.stacks.own)
        new = [
            stack if (stack.slots, stack.capacity) == size else stack.resized(*size, kept)
            for stack, size, kept in zip(old, sizes, keep, strict=True)
        ]
        self.stacks = Stacks(*new)
        self._drop_graphs()

    def forget(self) -> None:
        """Free all keys and values."""
        self._drop_graphs()
        self.stacks = Stacks(*(KVStack(self.shape, 0, 0) for _ in range(3)))
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _drop_graphs(self) -> None:
        if self._graphs is not None:
            self._graphs.clear()

    def _prefix_step(self, length: int, slot: int) -> Any:
        if self._compiled:
            return CpuMetadata(self.stacks, prefix_tokens(slot, length))
        return _PrefixStep(self.stacks.images, slot, length)

    def _logits(self, packed: TorchBatch | CpuBatch) -> Tensor:
        """Logits of a step's wanted tokens."""
        inner = self.model.model
        hidden: Tensor = inner.language_model(
            inputs_embeds=inner.get_input_embeddings()(packed.ids)[None],
            position_ids=packed.positions.expand(3, 1, -1),
            use_cache=False,
            engine_step=packed,
        ).last_hidden_state[0]
        logits: Tensor = self.model.lm_head(hidden[packed.last])
        return logits

    def _positions(self, tokens: Tensor, visual: Tensor, grid: Tensor) -> tuple[Tensor, int]:
        """Rotary positions of a prefix (3, 1, tokens), by the model's own rule, and that of a text token
        after it.
        """
        after = torch.cat([tokens, torch.zeros_like(tokens[:, :1])], dim=1)
        kinds = torch.cat([visual, torch.zeros_like(visual[:, :1])], dim=1).int()
        positions, _ = self.model.model.get_rope_index(
            after, mm_token_type_ids=kinds, image_grid_thw=grid, attention_mask=torch.ones_like(after)
        )
        return positions[:, :, :-1], int(positions[0, 0, -1])


class _PrefixStep:
    """An image's prefix by itself: causal, stored in its slot."""

    def __init__(self, stack: KVStack, slot: int, length: int) -> None:
        self._stack = stack
        self._slots = torch.full((length,), slot, device=stack.keys[0].device)
        self._places = torch.arange(length, device=stack.keys[0].device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As ``attention.Step`` says."""
        self._stack.write(layer, self._slots, self._places, key, value)
        q, k, v = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
        out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0, enable_gqa=True)
        return out[0].transpose(0, 1)
