"""The GPU's benchmarks in small, on a CPU: that they run, and what they find there."""

from __future__ import annotations

import json
from pathlib import Path

from tests.benchmarks.test_engine_benchmarks import report


def test_the_first_minutes_on_a_gpu_run_anywhere(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    found = report("benchmarks.gpu_first", "--device", "cpu", "--size", "tiny", "--seconds", "1", "--out", str(out))
    assert json.loads(out.read_text(encoding="utf-8")) == found
    assert [name for name, section in found.items() if "error" in section] == []
    assert found["steps"]["4 rows, 1 images: replayed"]
    assert found["growth"]["preempted"] == 0
    assert found["kernels"]["relative error"] < 1e-5
