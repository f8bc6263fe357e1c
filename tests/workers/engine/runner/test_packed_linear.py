"""Packed weights compute what the layers they replace do."""

from __future__ import annotations

import torch

from workers.engine.runner.packed_linear import pack_linears


def test_packed_layers_give_what_they_replace() -> None:
    torch.manual_seed(0)
    root = torch.nn.Module()
    root.q_proj, root.k_proj, root.v_proj = (torch.nn.Linear(16, size, bias=True) for size in (32, 8, 8))
    root.o_proj = torch.nn.Linear(32, 16, bias=False)
    x = torch.randn(1, 5, 16)
    with torch.inference_mode():
        before = [layer(x) for layer in (root.q_proj, root.k_proj, root.v_proj)]
        before.append(root.o_proj(before[0]))
        assert pack_linears(root) == 4
        after = [root.q_proj(x), root.k_proj(x), root.v_proj(x)]
        after.append(root.o_proj(after[0]))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(before, after, strict=True))
