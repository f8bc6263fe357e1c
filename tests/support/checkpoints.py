"""The shipped model with something wrong in its folder, as in checkpoints that were copied, converted or edited."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from app.model_identity import SMALL_MODEL

Weights = dict[str, Tensor]


def changed_weights(folder: Path, change: Callable[[Weights], Weights], *, of: Path = SMALL_MODEL) -> Path:
    """A copy of the model ``of`` with other weights; gives ``folder``."""
    shutil.copytree(of, folder)
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def changed_file(folder: Path, name: str, change: Callable[[dict[str, Any]], Any], *, of: Path = SMALL_MODEL) -> Path:
    """A copy of the model ``of``, in which a JSON file holds what ``change`` makes of it; gives ``folder``."""
    if not folder.exists():
        shutil.copytree(of, folder)
    path = folder / name
    path.write_text(json.dumps(change(json.loads(path.read_text())), ensure_ascii=False))
    return folder


def poisoned(folder: Path, key: str, value: float, *, row: int | None = None) -> Path:
    """One weight of the shipped model, or a row of a matrix, is ``value``; gives ``folder``."""

    def change(weights: Weights) -> Weights:
        if row is None:
            weights[key].view(-1)[5] = value
        else:
            weights[key][row] = value
        return weights

    return changed_weights(folder, change)
