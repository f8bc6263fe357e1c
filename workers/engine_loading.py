"""The engine of a worker process, as its settings ask for it."""

from __future__ import annotations

from app.model_identity import ModelIdentity
from app.settings import Settings
from workers.engine.api import Engine
from workers.engine.config import EngineConfig
from workers.gpu_memory import limit_memory


def load(settings: Settings, model: ModelIdentity) -> Engine:
    """The engine that the settings ask for, within this process's share of the device."""
    from workers.engine.load import load_engine  # torch takes seconds: only a worker that starts needs it

    limit_memory(settings)
    return load_engine(
        EngineConfig(
            model=model.source,
            revision=model.revision,
            engine=settings.engine,
            device=settings.device,
            dtype=settings.dtype,
            batch_size=settings.batch_size,
            memory_fraction=settings.memory_fraction,
            threads=settings.threads,
        )
    )
