"""Triton's kernels compile for the GPUs that are meant, and fit them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from benchmarks.gpu_compile import MOST_SHARED, TARGETS, variants


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: it has wheels for Linux alone")
def test_kernels_compile_and_spill_nothing() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_compile"], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert {(each["kernel"], each["target"]) for each in found} == {
        (variant.name, target) for variant in variants() for target in TARGETS
    }
    for each in found:
        assert each["spilled_bytes"] == 0, each
        assert each["shared_bytes"] <= MOST_SHARED, each
