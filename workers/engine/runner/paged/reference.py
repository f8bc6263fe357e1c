"""What the fused operators compute, in plain torch: the reference of the kernels, and what runs without a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

HIDDEN = -1e30  # the log-sum-exp of a level that a row does not see: finite, so that it weighs 0 and not NaN

TaskTensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""start, length, level, count, rows: as ``Tasks``."""


def add_rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rows, hidden) twice: the sum normalised by its root mean square, and the sum."""
    total = x.clone() if residual is None else x + residual
    wide = total.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype), total


def rotate_and_store(
    qkv: Tensor,
    norms: tuple[Tensor | None, Tensor | None],
    eps: float,
    rotary: Tensor,
    cache: tuple[Tensor, Tensor],
    where: Tensor,
) -> Tensor:
    """Heads' queries and keys normalised (where ``norms`` has weights) and rotated, keys and values written.

    ``qkv`` (rows, (heads + 2 key/value heads) * size); ``rotary`` cosine and sine (2, rows, size), of two equal
    halves; ``cache`` keys and values (blocks, key/value heads, block, size); ``where`` (2, rows) a row's block and
    its offset there. Gives the queries (rows, heads, size).
    """
    keys, values = cache
    rows, kv_heads, size = qkv.shape[0], keys.shape[1], keys.shape[3]
    heads = qkv.view(rows, -1, size)
    query, key = heads[:, : -2 * kv_heads], heads[:, -2 * kv_heads : -kv_heads]
    query, key = (
        each if weight is None else add_rms_norm(each, None, weight, eps)[0]
        for each, weight in zip((query, key), norms, strict=True)
    )
    cosine, sine = (each[:, None] for each in rotary)
    query, key = (each * cosine + _rotated(each) * sine for each in (query, key))
    block, offset = (each.long() for each in where)
    keys[block, :, offset] = key.to(keys.dtype)
    values[block, :, offset] = heads[:, -kv_heads:].to(values.dtype)
    rotated: Tensor = query.contiguous()
    return rotated


def attention(
    query: Tensor,
    cache: tuple[Tensor, Tensor],
    lists: tuple[TaskTensors, TaskTensors],
    blocks: Tensor,
    own_length: Tensor,
    present: Tensor,
    scale: float,
) -> Tensor:
    """(rows, heads, size) from all the levels that each row sees; ``lists`` as ``StepTasks`` has them."""
    rows, heads, size = query.shape
    out = query.new_zeros(present.shape[1], rows, heads, size, dtype=torch.float32)
    lse = out.new_full((present.shape[1], rows, heads), HIDDEN)
    for tasks in lists:
        for start, length, level, count, members in zip(*(each.tolist() for each in tasks), strict=True):
            if count:
                chosen = torch.tensor(members[:count], device=query.device)
                limits = own_length[chosen] if level == 0 else own_length.new_full((count,), length)
                part = _span(query[chosen] * scale, cache, blocks[start:], length, limits)
                out[level, chosen], lse[level, chosen] = part
    lse = lse.masked_fill(present.T[:, :, None] == 0, HIDDEN)
    return (out * lse.softmax(dim=0)[..., None]).sum(dim=0).to(query.dtype)


def silu_mul(gate_up: Tensor) -> Tensor:
    """(rows, 2 * width) -> (rows, width)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def _span(
    query: Tensor, cache: tuple[Tensor, Tensor], blocks: Tensor, length: int, limits: Tensor
) -> tuple[Tensor, Tensor]:
    """Some rows over one span, each over its first ``limits`` tokens: (rows, heads, size) and (rows, heads)."""
    rows, heads, size = query.shape
    block, kv_heads = cache[0].shape[2], cache[0].shape[1]
    used = blocks[: -(-length // block)].long()
    keys, values = (each[used].transpose(0, 1).reshape(kv_heads, -1, size)[:, :length].float() for each in cache)
    folded = query.float().view(rows, kv_heads, -1, size).permute(1, 2, 0, 3)  # (kv heads, group, rows, size)
    scores = folded @ keys[:, None].transpose(2, 3)
    scores = scores.masked_fill(torch.arange(length, device=limits.device) >= limits[:, None], -torch.inf)
    out = scores.softmax(dim=-1) @ values[:, None]
    lse = scores.logsumexp(dim=-1)
    return out.permute(2, 0, 1, 3).reshape(rows, heads, size), lse.permute(2, 0, 1).reshape(rows, heads)


def _rotated(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)
