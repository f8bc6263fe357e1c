"""Linear layers for CPUs: weights laid out once for oneDNN's kernels, and layers over one input run as one
product.

A decoding step multiplies few rows with every weight of the model; repacking the weights in each call, as a
plain ``nn.Linear`` does, then costs as much as the product, and several small products cost more than a large
one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

ROWS_HINT = 64  # what the layout is made for; any number of rows works
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def pack_model(model: Any) -> None:
    """Pack the language model's layers and the head of a transformers model, where that helps."""
    pack_linears(model.model.language_model)
    if can_pack(model.lm_head.weight):
        model.lm_head = PackedLinear(model.lm_head.weight, None)


def pack_linears(root: nn.Module) -> int:
    """Replace the linear layers below ``root`` where that helps; gives how many weights were packed."""
    if not can_pack(next(root.parameters())):
        return 0
    packed = 0
    for module in list(root.modules()):
        for names in TOGETHER:
            layers = [getattr(module, name, None) for name in names]
            if all(type(layer) is nn.Linear for layer in layers):
                for name, replacement in zip(names, _together(layers), strict=True):
                    setattr(module, name, replacement)
                packed += len(names)
        for name, layer in list(module.named_children()):
            if type(layer) is nn.Linear:
                setattr(module, name, PackedLinear(layer.weight, layer.bias))
                packed += 1
    return packed


def can_pack(weight: Tensor) -> bool:
    """Whether this torch has oneDNN's packed float32 product for the weight's device."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch._C._has_mkldnn
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


class PackedLinear(nn.Module):
    """``nn.Linear`` for inference with a weight in oneDNN's own layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS_HINT)
        self._bias = None if bias is None else bias.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return out


class _First(nn.Module):
    """The first of several layers over one input: runs them all and leaves their shares to the others."""

    def __init__(self, product: PackedLinear, sizes: list[int]) -> None:
        super().__init__()
        self.product, self._sizes = product, sizes
        self.left: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """The first layer's share of the product."""
        shares: list[Tensor] = list(self.product(x).split(self._sizes, dim=-1))
        self.left = shares[1:]
        return shares[0]


class _Next(nn.Module):
    """A later layer over the same input, whose share is there already: the model calls the layers in this
    order.
    """

    def __init__(self, first: _First) -> None:
        super().__init__()
        self._first = [first]  # in a list, so that it is not registered as a child twice

    def forward(self, x: Tensor) -> Tensor:
        """This layer's share of the product that the first layer ran."""
        return self._first[0].left.pop(0)


def _together(layers: list[Any]) -> list[nn.Module]:
    biases = [layer.bias for layer in layers]
    bias = torch.cat(biases) if all(each is not None for each in biases) else None
    product = PackedLinear(torch.cat([layer.weight for layer in layers]), bias)
    first = _First(product, [layer.out_features for layer in layers])
    return [first, *(_Next(first) for _ in layers[1:])]
