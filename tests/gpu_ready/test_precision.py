"""bfloat16 attention is as exact as the one that ``generate`` uses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from workers.engine.runner.torch import attention
from workers.engine.runner.torch.attention import attend_causal, attend_shared, attend_stacked, stacked_mask

HEADS, KV_HEADS, SIZE, KEYS = 8, 2, 64, 300

Case = Callable[[Tensor, Tensor, Tensor], Tensor]


def shared(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return attend_shared(query, keys, values)[0]


def stacked(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    mask = stacked_mask(torch.tensor([KEYS]), KEYS, KV_HEADS)
    return attend_stacked(query[None], keys[None], values[None], mask)[0]


def causal(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return attend_causal(query[None], keys.transpose(0, 1)[None], values.transpose(0, 1)[None])[0]


@pytest.mark.parametrize("spread", [3.0, 9.0, 36.0])
@pytest.mark.parametrize("case", [shared, stacked, causal])
def test_bfloat16_errs_by_at_most_one_and_a_half_times_what_sdpa_does(
    monkeypatch: pytest.MonkeyPatch, case: Case, spread: float
) -> None:
    monkeypatch.setattr(attention, "_flash", lambda _: False)  # as on CUDA
    torch.manual_seed(0)
    rows = KEYS if case is causal else 64
    query = (torch.randn(rows, HEADS, SIZE) * spread / SIZE**0.5).bfloat16()
    keys, values = torch.randn(KV_HEADS, KEYS, SIZE).bfloat16(), torch.randn(KV_HEADS, KEYS, SIZE).bfloat16()

    def sdpa(dtype: torch.dtype) -> Tensor:
        q, k, v = (each.to(dtype)[None] for each in (query.transpose(0, 1), keys, values))
        out = scaled_dot_product_attention(q, k, v, is_causal=case is causal, scale=1.0, enable_gqa=True)
        return out[0].transpose(0, 1).double()

    exact = sdpa(torch.float64)
    allowed = 1.5 * float((sdpa(torch.bfloat16) - exact).norm())
    ours = case(query, keys, values).bfloat16().double()  # what the next layer gets
    assert float((ours - exact).norm()) <= allowed
