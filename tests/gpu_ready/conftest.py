"""The engine tests' tiny models."""

from __future__ import annotations

from tests.workers.engine.conftest import model_folder

__all__ = ["model_folder"]
