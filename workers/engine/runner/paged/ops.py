"""The fused operators, as torch knows them: plain torch on a CPU, Triton on a GPU, shapes alone on meta tensors.

What each moves and multiplies is stated in ``costs.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.engine.runner.paged import reference
from workers.engine.sampling import choose

NAMESPACE = "relation_farm"


@torch.library.custom_op(f"{NAMESPACE}::add_rms_norm", mutates_args=(), device_types="cpu")
def add_rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See ``reference.add_rms_norm``."""
    return reference.add_rms_norm(x, residual, weight, eps)


@add_rms_norm.register_kernel("cuda")
def _(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    from workers.engine.runner.paged import triton_launch

    return triton_launch.add_rms_norm(x, residual, weight, eps)


@add_rms_norm.register_fake
def _(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@torch.library.custom_op(f"{NAMESPACE}::rotate_and_store", mutates_args=("keys", "values"), device_types="cpu")
def rotate_and_store(
    qkv: Tensor,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    eps: float,
    rotary: Tensor,
    keys: Tensor,
    values: Tensor,
    where: Tensor,
) -> Tensor:
    """See ``reference.rotate_and_store``."""
    return reference.rotate_and_store(qkv, (query_norm, key_norm), eps, rotary, (keys, values), where)


@rotate_and_store.register_kernel("cuda")
def _(
    qkv: Tensor,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    eps: float,
    rotary: Tensor,
    keys: Tensor,
    values: Tensor,
    where: Tensor,
) -> Tensor:
    from workers.engine.runner.paged import triton_launch

    return triton_launch.rotate_and_store(qkv, (query_norm, key_norm), eps, rotary, (keys, values), where)


@rotate_and_store.register_fake
def _(
    qkv: Tensor,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    eps: float,
    rotary: Tensor,
    keys: Tensor,
    values: Tensor,
    where: Tensor,
) -> Tensor:
    kv_heads, size = keys.shape[1], keys.shape[3]
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] // size - 2 * kv_heads, size)


@torch.library.custom_op(f"{NAMESPACE}::attention", mutates_args=(), device_types="cpu")
def attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lists: Sequence[Tensor],
    blocks: Tensor,
    own_length: Tensor,
    present: Tensor,
    scale: float,
) -> Tensor:
    """See ``reference.attention``."""
    return reference.attention(query, (keys, values), split_lists(lists), blocks, own_length, present, scale)


@attention.register_kernel("cuda")
def _(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lists: Sequence[Tensor],
    blocks: Tensor,
    own_length: Tensor,
    present: Tensor,
    scale: float,
) -> Tensor:
    from workers.engine.runner.paged import triton_launch

    return triton_launch.attention(query, (keys, values), split_lists(lists), blocks, own_length, present, scale)


@attention.register_fake
def _(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lists: Sequence[Tensor],
    blocks: Tensor,
    own_length: Tensor,
    present: Tensor,
    scale: float,
) -> Tensor:
    return torch.empty_like(query)


@torch.library.custom_op(f"{NAMESPACE}::silu_mul", mutates_args=(), device_types="cpu")
def silu_mul(gate_up: Tensor) -> Tensor:
    """See ``reference.silu_mul``."""
    return reference.silu_mul(gate_up)


@silu_mul.register_kernel("cuda")
def _(gate_up: Tensor) -> Tensor:
    from workers.engine.runner.paged import triton_launch

    return triton_launch.silu_mul(gate_up)


@silu_mul.register_fake
def _(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


@torch.library.custom_op(f"{NAMESPACE}::sample", mutates_args=(), device_types="cpu")
def sample(logits: Tensor, temperatures: Tensor, numbers: Tensor) -> Tensor:
    """See ``sampling.choose``."""
    return choose(logits, temperatures, numbers)


@sample.register_kernel("cuda")
def _(logits: Tensor, temperatures: Tensor, numbers: Tensor) -> Tensor:
    from workers.engine.runner.paged import triton_launch

    return triton_launch.sample(logits.contiguous(), temperatures, numbers)


@sample.register_fake
def _(logits: Tensor, temperatures: Tensor, numbers: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.int64)


def split_lists(tensors: Sequence[Tensor]) -> tuple[reference.TaskTensors, reference.TaskTensors]:
    """The tensors of ``StepTasks.single`` and then of ``shared``, as one argument carries them."""
    start, length, level, count, rows, *shared = tensors
    return (start, length, level, count, rows), (shared[0], shared[1], shared[2], shared[3], shared[4])
