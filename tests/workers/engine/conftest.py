"""Tiny random models of each family for the engine's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tools.random_model import build

torch.set_num_threads(1)  # tiny models: two threads on a busy machine wait for each other more than they work


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a family's tiny random model, built once a session."""
    built: dict[str, Path] = {}

    def folder(family: str = "qwen3_vl") -> Path:
        if family not in built:
            built[family] = build(tmp_path_factory.mktemp(family), size="tiny", family=family)
        return built[family]

    return folder
