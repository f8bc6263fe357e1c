"""Triton's interpreter: it runs kernels without a GPU, if it is chosen before Triton is imported first."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path


def choose_interpreter() -> None:
    """Let Triton interpret its kernels in this process, unless a GPU is there or it is loaded already."""
    if not Path("/dev/nvidiactl").exists() and "triton" not in sys.modules:  # torch is not loaded yet, to ask it
        os.environ["TRITON_INTERPRET"] = "1"


def without_interpreter() -> str | None:
    """Why kernels cannot be interpreted here; None where they can."""
    if find_spec("triton") is None:
        return "Triton is not installed: it has wheels for Linux alone"
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "a GPU is at hand, which runs the kernels itself, or Triton was loaded without its interpreter"
    return None
