"""What the fused operators move and multiply at the least: the bytes of what each must read and write once, and the
floating-point operations of its products.
"""

from __future__ import annotations

from dataclasses import dataclass

from workers.engine.runner.paged.tasks import BLOCK, StepTasks


@dataclass(frozen=True)
class Cost:
    """What an operator moves and multiplies, once, and how many kernels it launches on a GPU."""

    bytes: int
    flops: int
    launches: int


def add_rms_norm_cost(rows: int, hidden: int, itemsize: int, *, first: bool = False) -> Cost:
    """Reads x and the residual (``first``: x alone) and the weight, writes both results."""
    return Cost(((3 if first else 4) * rows + 1) * hidden * itemsize, 0, 1)


def rotate_and_store_cost(rows: int, heads: int, kv_heads: int, size: int, itemsize: int) -> Cost:
    """Reads what the product gave, cosine, sine and two norms; writes queries, keys and values."""
    moved = rows * (2 * (heads + 2 * kv_heads) + 2) * size + 2 * size
    return Cost(moved * itemsize + 8 * rows, 0, 1)


def silu_mul_cost(rows: int, width: int, itemsize: int) -> Cost:
    """Reads gate and up, writes their product."""
    return Cost(3 * rows * width * itemsize, 0, 1)


def sample_cost(rows: int, vocabulary: int, itemsize: int) -> Cost:
    """Reads the logits three times, and two numbers a row; writes a token a row."""
    return Cost(rows * (3 * vocabulary * itemsize + 20), 0, 1)


def attention_cost(tasks: StepTasks, heads: int, kv_heads: int, size: int, itemsize: int) -> Cost:
    """Keys and values of each span once, however many tasks read it (the others find it in the second-level cache);
    queries and outputs once a task or row; the parts, float32, written and read back by the merge; the lists.
    """
    span_tokens: dict[int, int] = {}
    seen = parts = 0
    for each in (tasks.single, tasks.shared):
        for start, length, count in zip(each.start.tolist(), each.length.tolist(), each.count.tolist(), strict=True):
            if count:
                span_tokens[start] = max(span_tokens.get(start, 0), length)
                seen += count * length
                parts += count
    rows = len(tasks.own_length)
    moved = 2 * sum(span_tokens.values()) * kv_heads * size * itemsize
    moved += (parts + rows) * heads * size * itemsize  # queries read, output written
    moved += 2 * parts * heads * (size + 1) * 4
    moved += sum(each.numel() * 4 for each in tasks.tensors() if each is not tasks.blocks)
    moved += sum(-(-tokens // BLOCK) for tokens in span_tokens.values()) * 4
    return Cost(moved, 4 * seen * heads * size, 3)
