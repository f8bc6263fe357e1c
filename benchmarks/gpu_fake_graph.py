"""A CUDA graph's rules without CUDA: what a captured step may not do, a replay of this one fails at.

A real graph repeats the captured kernels over the captured addresses and silently ignores whatever the host does
differently. This one runs the step again and compares each operation with the captured one: same operation, same
addresses, shapes and strides of what lies outside the step, no value read back by the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SYNCHRONISING = frozenset(
    {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "is_nonzero", "equal", "_to_cpu"}
)

Operation = tuple[str, tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...]]


class GraphError(RuntimeError):
    """A step did what no graph can repeat."""


class _Watch(TorchDispatchMode):
    """Notes each operation with the addresses, shapes and strides of its outer tensors."""

    def __init__(self, expected: list[Operation] | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[Operation] = []
        self._expected = expected
        self._inner: set[int] = set()
        self._alive: list[Tensor] = []  # so that no address is given twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        leaves = tree_leaves((args, kwargs or {}))
        if name in SYNCHRONISING or (name == "index" and any(_is_mask(leaf) for leaf in leaves)):
            raise GraphError(f"{name} waits for the device")
        outer = tuple(
            (leaf.data_ptr(), tuple(leaf.shape), tuple(leaf.stride()))
            for leaf in leaves
            if _is_plain(leaf) and leaf.untyped_storage().data_ptr() not in self._inner
        )
        operation = (name, outer)
        at = len(self.seen)
        if self._expected is not None and (at >= len(self._expected) or self._expected[at] != operation):
            was = self._expected[at] if at < len(self._expected) else None
            raise GraphError(f"operation {at} is {operation}, captured was {was}")
        self.seen.append(operation)
        outer_storages = {leaf.untyped_storage().data_ptr() for leaf in leaves if _is_plain(leaf)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if _is_plain(leaf) and leaf.untyped_storage().data_ptr() not in outer_storages:
                self._inner.add(leaf.untyped_storage().data_ptr())
                self._alive.append(leaf)
        return out


def _is_plain(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and not leaf.is_mkldnn  # weights in oneDNN's layout have no address


def _is_mask(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dtype in (torch.bool, torch.uint8)


class FakeGraphs:
    """A ``Recorder`` that holds steps to a graph's rules; ``replays`` counts those that kept them."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def record(self, step: Callable[[], object]) -> Callable[[], None]:
        """As ``Recorder.record`` says."""
        step()
        watch = _Watch(None)
        with watch:
            step()
        self.captures += 1

        def replay() -> None:
            with _Watch(watch.seen):
                step()
            self.replays += 1

        return replay

    def clear(self) -> None:
        """As ``Recorder.clear`` says."""
