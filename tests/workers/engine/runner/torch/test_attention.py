"""Attention part by part equals attention over everything."""

from __future__ import annotations

import pytest
import torch

from workers.engine.runner.torch.attention import attend_causal, attend_shared, attend_stacked, merge, stacked_mask


def test_parts_merge_into_one_softmax() -> None:
    torch.manual_seed(0)
    query, keys, values = torch.randn(6, 4, 8), torch.randn(2, 50, 8), torch.randn(2, 50, 8)
    whole, _ = attend_shared(query, keys, values)
    shared = attend_shared(query, keys[:, :30], values[:, :30])
    mask = stacked_mask(torch.full((6,), 20), 25, 2)
    own_keys, own_values = (
        torch.cat([tensor[:, 30:], torch.randn(2, 5, 8)], dim=1).expand(6, -1, -1, -1) for tensor in (keys, values)
    )
    merged = merge([shared, attend_stacked(query[:, None], own_keys, own_values, mask)])
    assert torch.allclose(merged, whole, atol=1e-5)


def test_causal_parts_do_not_see_their_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, keys, values = torch.randn(2, 9, 4, 8), torch.randn(2, 9, 2, 8), torch.randn(2, 9, 2, 8)
    out, lse = attend_causal(query, keys, values)
    monkeypatch.setattr(
        "workers.engine.runner.torch.attention._flash", lambda _: False
    )  # as on a device without the kernel
    plain_out, plain_lse = attend_causal(query, keys, values)
    assert torch.allclose(out, plain_out, atol=1e-5)
    assert torch.allclose(lse, plain_lse, atol=1e-5)
    assert torch.allclose(
        attend_causal(query[:, :5], keys[:, :5], values[:, :5])[0],
        out.view(2, 9, 4, 8)[:, :5].flatten(0, 1),
        atol=1e-5,
    )
