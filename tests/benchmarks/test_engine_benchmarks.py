"""The engine's benchmarks in small: they run, and what they compare is equal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.support.input_files import DATA, needs_data


def report(*command: str) -> dict[str, Any]:
    """The JSON line that a benchmark prints last."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", *command], env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_every_algorithm_writes_the_same_tokens() -> None:
    found = report("benchmarks.engine", "--config", "tiny", "--candidates", "14")
    assert len(found["same_tokens"]) == 7
    assert set(found["same_tokens"].values()) == {1.0}
    assert found["speedup_vs_older"] > 0
    assert found["occupancy"] > 0.5
    assert set(found["seconds"]) >= {"older pipeline", "+ compiled kernels (the engine)"}


def test_the_farms_own_prompts_are_answered_as_generate_answers_them_alone() -> None:
    found = report("benchmarks.exactness", "--limit", "16")
    assert found["same"] == found["requests"] == 16


@needs_data
def test_prompts_over_photographs_too() -> None:
    photos = DATA / "photos20"
    inputs = ("--test-images", photos / "test_images.json", "--recall-results", photos / "recall_results_public.json")
    options = ("--image-root", photos, "--limit", 24, "--max-new-tokens", 24)
    found = report("benchmarks.exactness", *map(str, (*inputs, *options)))
    assert found["same"] == found["requests"] == 24


@pytest.mark.skipif("VLLM_PYTHON" not in os.environ, reason="VLLM_PYTHON names no Python that has vLLM")
def test_vllm_writes_the_same_tokens() -> None:
    options = ("--candidates", "4", "--runs", "older,engine,vllm", "--vllm-python", os.environ["VLLM_PYTHON"])
    found = report("benchmarks.engine", *options)
    assert found["same_tokens"]["vLLM"] == 1.0
    assert found["speedup_vs_vllm"] > 0
