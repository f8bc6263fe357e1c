"""Shared-prefix attention: the image's prefix, the group's shared prefix and a sequence's own tokens, part by part.

Each part gives its output and the logarithm of its sum of exponentials, and parts are merged exactly (Hydragen, arXiv
2402.05099): keys and values that many sequences share are read once for all of them, as one matrix product.
"""

from __future__ import annotations

import torch
from torch import Tensor

HIDDEN = -1e30  # added to what must not be seen: finite, so that a row that sees nothing gives 0 and not NaN
SCORES_AT_ONCE = 2**26  # elements of a score matrix: longer products are cut into chunks

Part = tuple[Tensor, Tensor]
"""Output (rows, heads, head size) and log-sum-exp (rows, heads), float32, of a softmax over some of the keys.
"""


def store(keys: Tensor, values: Tensor, where: tuple[Tensor, Tensor], new_keys: Tensor, new_values: Tensor) -> None:
    """Write tokens' keys and values (tokens, heads, size) into (slots, heads, capacity, size), each token at the slot
    and offset that ``where`` gives, two tensors of (tokens,).
    """
    slots, offsets = where
    keys[slots, :, offsets] = new_keys
    values[slots, :, offsets] = new_values


def merge(parts: list[Part]) -> Tensor:
    """One softmax over the keys of all parts: (rows, heads, head size)."""
    if len(parts) == 1:
        return parts[0][0]
    weights = torch.stack([lse for _, lse in parts]).softmax(dim=0)
    out = parts[0][0] * weights[0, ..., None]
    for (part, _), weight in zip(parts[1:], weights[1:], strict=True):
        out = torch.addcmul(out, part, weight[..., None])
    return out


def attend_shared(query: Tensor, keys: Tensor, values: Tensor) -> Part:
    """Every row sees all of one prefix: ``query`` (rows, heads, size), ``keys`` (key/value heads, length,
    size).
    """
    rows, heads, size = query.shape
    kv_heads = keys.shape[0]
    folded = query.view(rows, kv_heads, heads // kv_heads, size).transpose(0, 1).reshape(kv_heads, -1, size)
    chunks = max(1, folded.shape[0] * folded.shape[1] * keys.shape[1] // SCORES_AT_ONCE)
    parts = [_softmax_part(chunk, keys, values) for chunk in folded.chunk(chunks, dim=1)]
    out, lse = (torch.cat(each, dim=1) if chunks > 1 else each[0] for each in zip(*parts, strict=True))
    out = out.view(kv_heads, rows, -1, size).transpose(0, 1).reshape(rows, heads, size)
    return out, lse.view(kv_heads, rows, -1).transpose(0, 1).reshape(rows, heads)


def attend_stacked(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Part:
    """Each slot's rows see that slot: ``query`` (slots, rows, heads, size), ``keys`` (slots, kv heads,
    length, size).

    ``mask`` (slots * kv heads, 1, length) float32 is added to the scores. Gives (slots * rows, heads, size)
    and (slots * rows, heads).
    """
    slots, rows, heads, size = query.shape
    kv_heads = keys.shape[1]
    folded = query.view(slots, rows, kv_heads, -1, size).transpose(1, 2).reshape(slots * kv_heads, -1, size)
    flat_keys, flat_values = keys.flatten(0, 1).transpose(1, 2), values.flatten(0, 1)
    if query.dtype == torch.float32:
        scores = torch.baddbmm(mask.expand(-1, folded.shape[1], -1), folded, flat_keys)
    else:
        scores = product(folded, flat_keys).add_(mask)
    out, lse = _weighted(scores, flat_values)
    out = out.view(slots, kv_heads, rows, -1, size).transpose(1, 2).reshape(slots * rows, heads, size)
    return out, lse.view(slots, kv_heads, rows, -1).transpose(1, 2).reshape(slots * rows, heads)


def stacked_mask(lengths: Tensor, longest: int, kv_heads: int) -> Tensor:
    """The mask of ``attend_stacked`` that shows the first ``lengths`` (slots,) tokens of each slot.

    Contiguous, for a captured step copies into it: with one slot a view would repeat one row for all heads.
    """
    seen = torch.arange(longest, device=lengths.device) < lengths[:, None]
    mask = torch.where(seen, 0.0, HIDDEN)
    return mask[:, None].expand(-1, kv_heads, -1).reshape(-1, 1, longest).contiguous()


def attend_causal(query: Tensor, keys: Tensor, values: Tensor) -> Part:
    """Causal attention within padded chunks: ``query`` (chunks, length, heads, size), ``keys`` with key/value
    heads.

    What pads a chunk comes last, so no real token sees it. Gives (chunks * length, heads, size) and its
    log-sum-exp.
    """
    chunks, length, heads, size = query.shape
    q = query.transpose(1, 2)
    k, v = (_expanded(tensor.transpose(1, 2), heads) for tensor in (keys, values))
    if _flash(q):
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True, scale=1.0)
    else:
        future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
        scores = product(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2)).masked_fill(future, HIDDEN)
        flat, lse = _weighted(scores, v.flatten(0, 1))
        out, lse = flat.view(chunks, heads, length, size), lse.view(chunks, heads, length)
    return out.transpose(1, 2).reshape(-1, heads, size), lse.transpose(1, 2).reshape(-1, heads)


def _softmax_part(query: Tensor, keys: Tensor, values: Tensor) -> Part:
    """(kv heads, rows, size) against (kv heads, length, size), everything seen."""
    if _flash(query):
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query[None], keys[None], values[None], 0.0, False, scale=1.0
        )
        return out[0], lse[0]
    return _weighted(product(query, keys.transpose(1, 2)), values)


def _weighted(scores: Tensor, values: Tensor) -> Part:
    """Softmax of (batch, rows, length) scores, float32, over (batch, length, size) values, and its log-sum-exp."""
    top = scores.amax(dim=-1)
    chances = scores.softmax(dim=-1)
    lse = top - chances.amax(dim=-1).log()  # the best chance is exp(top - lse): fewer passes than a sum of exps
    return product(chances.to(values.dtype), values), lse


def product(left: Tensor, right: Tensor) -> Tensor:
    """``torch.bmm`` in float32 whatever the factors' type: a score rounded to bfloat16 is wrong by up to 1/256 of
    itself, and the softmax takes its exponential.
    """
    if left.dtype == torch.float32:
        return torch.bmm(left, right)
    if left.device.type == "cuda":
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left.float(), right.float())


def _expanded(tensor: Tensor, heads: int) -> Tensor:
    """(batch, kv heads, length, size) with each key/value head repeated for its query heads."""
    batch, kv_heads, length, size = tensor.shape
    return tensor[:, :, None].expand(-1, -1, heads // kv_heads, -1, -1).reshape(batch, heads, length, size)


def _flash(query: Tensor) -> bool:
    """Whether torch's blocked CPU kernel, which also gives the log-sum-exp, can be used."""
    return query.device.type == "cpu" and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")
