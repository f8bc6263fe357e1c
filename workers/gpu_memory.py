"""One process's share of a GPU."""

from __future__ import annotations

from app.errors import WorkersError
from app.settings import Settings

SHARE = 0.8
"""Of a GPU's memory, divided by the workers on it: contexts and workspaces of CUDA take the rest."""


ROWS_A_PAIR = 4
"""Generations of a pair that are not done yet, on average while it is in flight; it begins with 6 or so."""


def memory_fraction(workers_per_gpu: int) -> float:
    """What one of so many workers on a GPU may use of its memory."""
    return SHARE / workers_per_gpu


def pairs_in_flight(rows: int) -> int:
    """Pairs that one worker on a GPU runs at once, so that twice as many generations as it decodes together are there.

    While some are decoded as many wait, images are loaded and results are written.
    """
    return max(1, round(2 * rows / ROWS_A_PAIR))


def limit_memory(settings: Settings) -> None:
    """Hold this process to its share of its GPU, before the first allocation. Nothing on a CPU.

    Raises WorkersError where the settings name a GPU and CUDA cannot be used, with what the driver says.
    """
    import torch

    if settings.device == "cpu":
        return
    if settings.device == "auto" and not torch.cuda.is_available():
        return
    device = torch.device(settings.device) if ":" in settings.device else None  # None: the first that is visible
    try:
        torch.empty(1, device=device or "cuda")
    except (RuntimeError, AssertionError) as error:  # AssertionError: a build of torch without CUDA
        raise WorkersError(
            f"FARM_DEVICE ({settings.device}): the GPU cannot be used: {error} (torch {torch.__version__}, "
            f"made for CUDA {torch.version.cuda or 'none'}; nvidia-smi shows the driver's)"
        ) from error
    torch.cuda.set_per_process_memory_fraction(settings.memory_fraction or SHARE, device)
