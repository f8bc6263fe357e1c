"""A GPU slot has a GPU or does not start."""

from __future__ import annotations

import pytest
import torch

from app.errors import WorkersError
from tests.conftest import MakeSettings
from workers.gpu_memory import limit_memory
from workers.launcher import slots_for


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a usable GPU")
def test_a_gpu_slot_without_cuda_refuses_to_start_with_the_drivers_words(make_settings: MakeSettings) -> None:
    device = slots_for(["0"], 1)[0].environment()["FARM_DEVICE"]
    with pytest.raises(WorkersError, match=r"FARM_DEVICE \(cuda\): the GPU cannot be used: .*(CUDA|NVIDIA)"):
        limit_memory(make_settings(device=device))


def test_a_cpu_needs_no_driver(make_settings: MakeSettings) -> None:
    limit_memory(make_settings(device="cpu"))
