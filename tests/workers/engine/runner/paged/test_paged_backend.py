"""The operators are tried before a model is run by them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from workers.engine.config import EngineConfig
from workers.engine.model import load_model
from workers.engine.runner.paged import ops
from workers.engine.runner.paged.paged_backend import kernels_fault


def test_operators_that_fail_or_err_are_found(
    model_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(EngineConfig(model=str(model_folder()), device="cpu"))
    assert kernels_fault(model) is None
    with monkeypatch.context() as patch:
        patch.setattr(ops, "silu_mul", lambda gate_up: torch.ones(1, gate_up.shape[1] // 2))
        assert "differ from plain torch" in str(kernels_fault(model))
    with monkeypatch.context() as patch:
        patch.setattr(ops, "attention", lambda *_: 1 / 0)
        assert "ZeroDivisionError" in str(kernels_fault(model))
