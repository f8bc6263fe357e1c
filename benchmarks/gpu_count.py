"""Launches, bytes and operations of a step, counted on meta tensors.

Every operation of the real code is seen, at the real model's shape, without memory or a GPU. A fused operator counts
as ``costs.py`` states, anything else as torch's own: all its inputs and outputs moved once, a launch each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from workers.engine.runner.paged.costs import (
    Cost,
    add_rms_norm_cost,
    attention_cost,
    rotate_and_store_cost,
    sample_cost,
    silu_mul_cost,
)
from workers.engine.runner.paged.tasks import StepTasks

BANDWIDTH, FLOPS = 0.85 * 3.35e12, 0.70 * 989e12
"""Of an H100 (SXM, bfloat16), what well-made kernels reach of the data sheet's."""
LAUNCH_S = 2e-6  # the least that a kernel takes, replayed

_FREE = frozenset({"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "detach", "alias"})


class Count(TorchDispatchMode):
    """Counts what runs within it. ``tasks``: the step's, with its numbers on the host."""

    def __init__(self, tasks: StepTasks) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches = self.flops = self.bytes = 0
        self.seconds = 0.0
        self.by_name: Counter[str] = Counter()
        self._tasks = tasks
        self._attention: Cost | None = None  # the same for all layers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        space, name = func._schema.name.split("::")
        cost = self._fused(name, args) if space == "relation_farm" else _plain(func, name, args, out)
        if cost is not None:
            self.launches += cost.launches
            self.bytes += cost.bytes
            self.flops += cost.flops
            self.by_name[name] += cost.launches
            self.seconds += max(cost.bytes / BANDWIDTH, cost.flops / FLOPS, LAUNCH_S * cost.launches)
        return out

    def _fused(self, name: str, args: Any) -> Cost:
        costs: dict[str, Callable[[], Cost]] = {
            "add_rms_norm": lambda: _norm(args[0], first=args[1] is None),
            "silu_mul": lambda: silu_mul_cost(args[0].shape[0], args[0].shape[1] // 2, args[0].itemsize),
            "rotate_and_store": lambda: _rotate(args[0], args[5]),
            "sample": lambda: sample_cost(args[0].shape[0], args[0].shape[1], args[0].itemsize),
            "attention": lambda: self._attend(args[0], args[1]),
        }
        return costs[name]()

    def _attend(self, query: Tensor, keys: Tensor) -> Cost:
        if self._attention is None:
            _, heads, size = query.shape
            self._attention = attention_cost(self._tasks, heads, keys.shape[1], size, query.itemsize)
        return self._attention


def _norm(x: Tensor, *, first: bool) -> Cost:
    return add_rms_norm_cost(x.shape[0], x.shape[1], x.itemsize, first=first)


def _rotate(qkv: Tensor, keys: Tensor) -> Cost:
    kv_heads, size = keys.shape[1], keys.shape[3]
    return rotate_and_store_cost(qkv.shape[0], qkv.shape[1] // size - 2 * kv_heads, kv_heads, size, qkv.itemsize)


def _plain(func: Any, name: str, args: Any, out: Any) -> Cost | None:
    inputs = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
    outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
    if name in _FREE or func.is_view or not outputs:
        return None
    if name == "embedding":
        return Cost(2 * sum(each.nbytes for each in outputs), 0, 1)
    moved = sum(each.nbytes for each in (*inputs, *outputs))
    flops = 0
    if name in ("mm", "addmm", "linear"):
        left, right = [each for each in inputs if each.dim() >= 2][-2:]
        flops = 2 * left.numel() * (right.shape[1] if name != "linear" else right.shape[0])
    return Cost(moved, flops, 1)
