"""Triton's kernels of the fused operators. Imported only where Triton is: it comes with torch for CUDA.

Without a GPU they run in Triton's interpreter (``TRITON_INTERPRET=1``), which checks their arithmetic alone.
"""

from __future__ import annotations

import triton
import triton.language as tl

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def span_attention(
    query, keys, values, starts, lengths, levels, counts, members, blocks, own_length, out, lse,
    rows, query_stride, block_stride, head_stride, scale_log2,
    WIDTH: tl.constexpr, GROUP: tl.constexpr, KV_HEADS: tl.constexpr, SIZE: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """One program: a task's rows and one key/value head. The span's keys are read once for all of these rows.

    ``out`` (levels, rows, heads, SIZE) float32, ``lse`` (levels, rows, heads). ``UP``: multiply in float32, which the
    interpreter needs for bfloat16.
    """
    task = tl.program_id(0)
    kv_head = tl.program_id(1)
    count = tl.load(counts + task)
    if count > 0:
        m = tl.arange(0, M)
        n = tl.arange(0, N)
        d = tl.arange(0, SIZE)
        member = m // GROUP
        head = kv_head * GROUP + m % GROUP
        live = (member < count) & (member < WIDTH)
        row = tl.load(members + task * WIDTH + member, mask=live, other=0)
        length = tl.load(lengths + task)
        start = tl.load(starts + task)
        level = tl.load(levels + task)
        limit = tl.where(level == 0, tl.load(own_length + row, mask=live, other=0), length)
        q = tl.load(
            query + row[:, None] * query_stride + head[:, None] * SIZE + d[None, :], mask=live[:, None], other=0.0
        )
        if UP:
            q = q.to(tl.float32)
        top = tl.full((M,), -1e30, tl.float32)
        total = tl.zeros((M,), tl.float32)
        weighted = tl.zeros((M, SIZE), tl.float32)
        for first in range(0, length, N):
            at = first + n
            inside = at < length
            block = tl.load(blocks + start + at // BLOCK, mask=inside, other=0).to(tl.int64)
            place = block * block_stride + kv_head * head_stride + (at % BLOCK) * SIZE
            k = tl.load(keys + place[:, None] + d[None, :], mask=inside[:, None], other=0.0)
            v = tl.load(values + place[:, None] + d[None, :], mask=inside[:, None], other=0.0)
            if UP:
                k = k.to(tl.float32)
                v = v.to(tl.float32)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
            scores = tl.where(at[None, :] < limit[:, None], scores, -1e30)
            best = tl.maximum(top, tl.max(scores, 1))
            chances = tl.exp2(scores - best[:, None])
            chances = tl.where(at[None, :] < limit[:, None], chances, 0.0)
            fade = tl.exp2(top - best)
            weighted = weighted * fade[:, None] + tl.dot(chances.to(v.dtype), v, input_precision="ieee")
            total = total * fade + tl.sum(chances, 1)
            top = best
        total = tl.where(live, total, 1.0)
        place = (level * rows + row) * (KV_HEADS * GROUP) + head
        tl.store(out + place[:, None] * SIZE + d[None, :], weighted / total[:, None], mask=live[:, None])
        tl.store(lse + place, (top + tl.log2(total)) * LN2, mask=live)


@triton.jit
def merge_levels(
    parts, lse, present, out, rows, HEADS: tl.constexpr, SIZE: tl.constexpr, LEVELS: tl.constexpr, H: tl.constexpr
):
    """One program a row: the levels that it sees as one softmax. ``H``: HEADS, or the next power of two."""
    row = tl.program_id(0)
    h = tl.arange(0, H)
    d = tl.arange(0, SIZE)
    real = h < HEADS
    best = tl.full((H,), -1e30, tl.float32)
    for level in tl.static_range(LEVELS):
        seen = h < HEADS * tl.load(present + row * LEVELS + level)
        one = tl.load(lse + (level * rows + row) * HEADS + h, mask=seen, other=-1e30)
        best = tl.maximum(best, one)
    total = tl.zeros((H,), tl.float32)
    mixed = tl.zeros((H, SIZE), tl.float32)
    for level in tl.static_range(LEVELS):
        seen = h < HEADS * tl.load(present + row * LEVELS + level)
        place = (level * rows + row) * HEADS + h
        one = tl.load(lse + place, mask=seen, other=-1e30)
        weight = tl.where(seen, tl.exp(one - best), 0.0)
        part = tl.load(parts + place[:, None] * SIZE + d[None, :], mask=seen[:, None], other=0.0)
        mixed += weight[:, None] * part
        total += weight
    # A row that fills up a shape sees nothing: 0, not 0 / 0.
    mixed = mixed / tl.where(total > 0, total, 1.0)[:, None]
    place = row * HEADS + h
    tl.store(out + place[:, None] * SIZE + d[None, :], mixed.to(out.dtype.element_ty), mask=real[:, None])


@triton.jit
def add_rms_norm(x, residual, weight, normed, total, hidden, eps, FIRST: tl.constexpr, H: tl.constexpr):
    """One program a row. Sums in the tensors' type, as the model does, and normalises in float32."""
    row = tl.program_id(0)
    at = tl.arange(0, H)
    real = at < hidden
    both = tl.load(x + row * hidden + at, mask=real, other=0.0)
    if not FIRST:
        other = tl.load(residual + row * hidden + at, mask=real, other=0.0)
        both = (both.to(tl.float32) + other.to(tl.float32)).to(both.dtype)
    tl.store(total + row * hidden + at, both, mask=real)
    wide = both.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / hidden + eps)
    w = tl.load(weight + at, mask=real, other=0.0)
    rounded = (wide * scale).to(both.dtype).to(tl.float32)
    tl.store(normed + row * hidden + at, (rounded * w.to(tl.float32)).to(both.dtype), mask=real)


@triton.jit
def rotate_and_store(
    qkv, query_norm, key_norm, cosine, sine, write, query, keys, values,
    rows, eps, block_stride, head_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, SIZE: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """One program: a row and a head of queries, keys or values, in two halves, whose cosines and sines are equal."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    HALF: tl.constexpr = SIZE // 2
    i = tl.arange(0, HALF)
    source = qkv + row * (HEADS + 2 * KV_HEADS) * SIZE + head * SIZE + i
    raw_first, raw_second = tl.load(source), tl.load(source + HALF)
    first, second = raw_first.to(tl.float32), raw_second.to(tl.float32)
    kind = raw_first.dtype
    if head < HEADS + KV_HEADS:
        if NORM:
            norm = tl.where(head < HEADS, 0, 1)
            scale = tl.rsqrt((tl.sum(first * first, 0) + tl.sum(second * second, 0)) / SIZE + eps)
            wq, wk = tl.load(query_norm + i).to(tl.float32), tl.load(key_norm + i).to(tl.float32)
            vq, vk = tl.load(query_norm + HALF + i).to(tl.float32), tl.load(key_norm + HALF + i).to(tl.float32)
            first = ((first * scale).to(kind).to(tl.float32) * tl.where(norm == 0, wq, wk)).to(kind).to(tl.float32)
            second = ((second * scale).to(kind).to(tl.float32) * tl.where(norm == 0, vq, vk)).to(kind).to(tl.float32)
        c = tl.load(cosine + row * SIZE + i).to(tl.float32)
        s = tl.load(sine + row * SIZE + i).to(tl.float32)
        turned = (first * c).to(kind).to(tl.float32) - (second * s).to(kind).to(tl.float32)
        second = (second * c).to(kind).to(tl.float32) + (first * s).to(kind).to(tl.float32)
        first = turned
    if head < HEADS:
        target = query + (row * HEADS + head) * SIZE + i
        tl.store(target, first.to(kind))
        tl.store(target + HALF, second.to(kind))
    else:
        block = tl.load(write + row).to(tl.int64)
        offset = tl.load(write + rows + row)
        is_key = head < HEADS + KV_HEADS
        kv_head = tl.where(is_key, head - HEADS, head - HEADS - KV_HEADS)
        place = block * block_stride + kv_head * head_stride + offset * SIZE + i
        if is_key:
            tl.store(keys + place, first.to(kind))
            tl.store(keys + place + HALF, second.to(kind))
        else:
            tl.store(values + place, raw_first)
            tl.store(values + place + HALF, raw_second)


@triton.jit
def silu_mul(gate_up, out, width, TILE: tl.constexpr):
    """One program: a part of a row."""
    row = tl.program_id(0)
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    real = at < width
    gate = tl.load(gate_up + row * 2 * width + at, mask=real, other=0.0)
    up = tl.load(gate_up + row * 2 * width + width + at, mask=real, other=0.0)
    wide = gate.to(tl.float32)
    activated = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    tl.store(out + row * width + at, (activated.to(tl.float32) * up.to(tl.float32)).to(gate.dtype), mask=real)


@triton.jit
def sample(logits, temperatures, numbers, out, columns, TILE: tl.constexpr):
    """One program a row: the best token, or the first whose cumulative chance exceeds the row's number; -1 where it
    holds NaN or infinity, or nothing else than minus infinity.

    The logits are read three times and nothing is written but the token: the best, the sum of exponentials (in
    float64), and the tile and place where the sum passes the number.
    """
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, TILE)
    best = tl.full((), -float("inf"), tl.float32)
    where = tl.full((), 0, tl.int32)
    odd = tl.full((), 0, tl.int32)
    for first in range(0, columns, TILE):
        x = tl.load(logits + row * columns + first + at, mask=first + at < columns, other=-float("inf")).to(tl.float32)
        odd += tl.sum(tl.where(x < float("inf"), 0, 1), 0)  # NaN is less than nothing
        top = tl.max(x, 0)
        place = first + tl.argmax(x, 0)
        where = tl.where(top > best, place, where)
        best = tl.maximum(best, top)
    temperature = tl.load(temperatures + row)
    if temperature > 0:
        scale = 1.0 / tl.maximum(temperature, 1e-6)
        total = tl.full((), 0.0, tl.float64)
        for first in range(0, columns, TILE):
            x = tl.load(logits + row * columns + first + at, mask=first + at < columns, other=-float("inf"))
            total += tl.sum(tl.exp((x.to(tl.float32) - best) * scale).to(tl.float64), 0)
        target = tl.load(numbers + row) * total
        before = tl.full((), 0.0, tl.float64)
        passed = tl.full((), 0, tl.int32)
        for first in range(0, columns, TILE):
            x = tl.load(logits + row * columns + first + at, mask=first + at < columns, other=-float("inf"))
            chances = tl.exp((x.to(tl.float32) - best) * scale).to(tl.float64)
            bounds = before + tl.cumsum(chances, 0)
            passed += tl.sum((bounds <= target).to(tl.int32), 0)
            before += tl.sum(chances, 0)
        where = tl.minimum(passed, columns - 1)
    where = tl.where((odd > 0) | (best == -float("inf")), -1, where)
    tl.store(out + row, where.to(tl.int64))
