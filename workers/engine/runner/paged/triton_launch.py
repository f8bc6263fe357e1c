"""Launches Triton's kernels with the grid and the tile sizes that fit; same arguments and results as the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.engine.runner.paged import triton_kernels as kernels
from workers.engine.runner.paged.reference import TaskTensors

LOG2_E = 1.4426950408889634
TOKENS = 64  # of a span at once
SILU_TILE = 1024
SAMPLE_TILE = 4096


def add_rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As ``reference.add_rms_norm``."""
    x = x.contiguous()
    normed, total = torch.empty_like(x), torch.empty_like(x)
    rows, hidden = x.shape
    kernels.add_rms_norm[(rows,)](
        x, x if residual is None else residual, weight, normed, total, hidden, eps,
        FIRST=residual is None, H=_power(hidden), num_warps=8,
    )  # fmt: skip
    return normed, total


def rotate_and_store(
    qkv: Tensor,
    norms: tuple[Tensor | None, Tensor | None],
    eps: float,
    rotary: Tensor,
    cache: tuple[Tensor, Tensor],
    where: Tensor,
) -> Tensor:
    """As ``reference.rotate_and_store``."""
    keys, values = cache
    rows, kv_heads, size = qkv.shape[0], keys.shape[1], keys.shape[3]
    heads = qkv.shape[1] // size - 2 * kv_heads
    query = qkv.new_empty(rows, heads, size)
    query_norm, key_norm = (qkv if each is None else each for each in norms)
    kernels.rotate_and_store[(rows, heads + 2 * kv_heads)](
        qkv, query_norm, key_norm, rotary[0], rotary[1], where, query, keys, values,
        rows, eps, keys.stride(0), keys.stride(1),
        HEADS=heads, KV_HEADS=kv_heads, SIZE=size, NORM=norms[0] is not None, num_warps=1,
    )  # fmt: skip
    return query


def attention(
    query: Tensor,
    cache: tuple[Tensor, Tensor],
    lists: tuple[TaskTensors, TaskTensors],
    blocks: Tensor,
    own_length: Tensor,
    present: Tensor,
    scale: float,
) -> Tensor:
    """As ``reference.attention``."""
    (keys, values), (rows, heads, size) = cache, query.shape
    levels, kv_heads = present.shape[1], keys.shape[1]
    group = heads // kv_heads
    parts = query.new_empty(levels, rows, heads, size, dtype=torch.float32)
    lse = query.new_empty(levels, rows, heads, dtype=torch.float32)
    for start, length, level, count, members in lists:
        if len(start) == 0:
            continue
        width = members.shape[1]
        tile = max(16, _power(width * group))
        kernels.span_attention[(len(start), kv_heads)](
            query, keys, values, start, length, level, count, members, blocks, own_length, parts, lse,
            rows, query.stride(0), keys.stride(0), keys.stride(1), scale * LOG2_E,
            WIDTH=width, GROUP=group, KV_HEADS=kv_heads, SIZE=size, M=tile, N=TOKENS, BLOCK=keys.shape[2],
            UP=query.device.type == "cpu" and query.dtype == torch.bfloat16, num_warps=4, num_stages=2,
        )  # fmt: skip
    out = torch.empty_like(query)
    kernels.merge_levels[(rows,)](
        parts, lse, present, out, rows, HEADS=heads, SIZE=size, LEVELS=levels, H=_power(heads), num_warps=4
    )
    return out


def silu_mul(gate_up: Tensor) -> Tensor:
    """As ``reference.silu_mul``."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, width)
    kernels.silu_mul[(rows, -(-width // SILU_TILE))](gate_up, out, width, TILE=SILU_TILE)
    return out


def sample(logits: Tensor, temperatures: Tensor, numbers: Tensor) -> Tensor:
    """As ``sampling.choose``."""
    rows, columns = logits.shape
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    kernels.sample[(rows,)](logits, temperatures, numbers, out, columns, TILE=SAMPLE_TILE, num_warps=8)
    return out


def _power(value: int) -> int:
    return 1 << (value - 1).bit_length()
