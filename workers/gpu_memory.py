"""One process's share of a GPU."""

from __future__ import annotations

from app.settings import Settings

SHARE = 0.8
"""Of a GPU's memory, divided by the workers on it: contexts and workspaces of CUDA take the rest."""


def memory_fraction(workers_per_gpu: int) -> float:
    """What one of so many workers on a GPU may use of its memory."""
    return SHARE / workers_per_gpu


def limit_memory(settings: Settings) -> None:
    """Hold this process to its share of its GPU, before the first allocation. Nothing on a CPU."""
    import torch

    if settings.device == "cpu" or not torch.cuda.is_available():
        return
    device = torch.device(settings.device) if ":" in settings.device else None  # None: the first that is visible
    torch.cuda.set_per_process_memory_fraction(settings.memory_fraction or SHARE, device)
