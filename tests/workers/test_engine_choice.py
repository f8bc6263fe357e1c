"""``--engine auto``: what it takes where, and that it follows what was measured. GPUs and vLLM are pretended here."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest

from app.model_identity import identify_model
from app.settings import Settings
from tests.conftest import MakeSettings
from workers import engine_choice
from workers.engine_choice import (
    Calibration,
    Surroundings,
    choose_engine,
    find_calibration,
    keep_calibration,
    look_around,
)

MODEL = identify_model("small")
VERSIONS = {"torch": "2.14.0", "transformers": "5.20.2"}
CPU = Surroundings(None, 1, VERSIONS)
CARD = Surroundings("NVIDIA H100 80GB HBM3", 1, VERSIONS)
CARD_VLLM = Surroundings("NVIDIA H100 80GB HBM3", 1, VERSIONS | {"vllm": "0.33.0"})


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings()


def test_what_is_asked_for_is_taken(make_settings: MakeSettings) -> None:
    assert choose_engine(make_settings(engine="transformers"), MODEL, CARD_VLLM).engine == "transformers"


def test_on_a_gpu_it_is_vllm_where_that_is_installed(settings: Settings) -> None:
    choice = choose_engine(settings, MODEL, CARD_VLLM)
    assert choice.engine == "vllm"
    assert "measured nothing" in choice.why
    assert choose_engine(settings, MODEL, CARD).engine == "auto"


def test_on_a_cpu_it_is_the_familys_own_whatever_was_measured(settings: Settings) -> None:
    keep_calibration(settings, Calibration(MODEL.key, CPU, {"builtin": 1.0, "vllm": 9.0}))
    assert choose_engine(settings, MODEL, CPU).engine == "auto"


@pytest.mark.parametrize(("speeds", "faster"), [({"builtin": 90.0, "vllm": 80.0}, "builtin"),
                                              ({"builtin": 70.0, "vllm": 80.0}, "vllm")])  # fmt: skip
def test_what_was_measured_faster_is_taken_and_the_figures_are_said(
    settings: Settings, speeds: dict[str, float], faster: str
) -> None:
    keep_calibration(settings, Calibration(MODEL.key, CARD_VLLM, speeds))
    choice = choose_engine(settings, MODEL, CARD_VLLM)
    assert choice.engine == faster
    assert "builtin" in choice.why
    assert "80 tokens/s" in choice.why


def test_a_measurement_holds_for_its_card_model_and_versions_alone(settings: Settings) -> None:
    keep_calibration(settings, Calibration(MODEL.key, CARD_VLLM, {"builtin": 2.0, "vllm": 1.0}))
    others = [
        dataclasses.replace(CARD_VLLM, card="NVIDIA A100"),
        dataclasses.replace(CARD_VLLM, gpus=2),
        dataclasses.replace(CARD_VLLM, versions=CARD_VLLM.versions | {"vllm": "0.34.0"}),
    ]
    assert all(choose_engine(settings, MODEL, around).engine == "vllm" for around in others)
    assert find_calibration(settings, identify_model("another/model"), CARD_VLLM) is None
    assert find_calibration(settings, MODEL, CARD_VLLM) is not None


def test_a_new_measurement_replaces_the_old_one_of_its_surroundings(settings: Settings) -> None:
    for speeds in ({"builtin": 2.0}, {"vllm": 3.0}):
        path = keep_calibration(settings, Calibration(MODEL.key, CARD_VLLM, speeds))
    keep_calibration(settings, Calibration(MODEL.key, CARD, {"builtin": 1.0}))
    found = find_calibration(settings, MODEL, CARD_VLLM)
    assert found is not None
    assert found.tokens_per_second == {"vllm": 3.0}
    assert path.read_text().count("model_key") == 2


@pytest.mark.parametrize("content", ["", "{}", "[1]", '[{"model_key": "x"}]', "\x00"])
def test_a_file_that_cannot_be_read_is_no_measurement(
    settings: Settings, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = keep_calibration(settings, Calibration(MODEL.key, CARD, {"builtin": 1.0}))
    path.write_text(content)
    assert choose_engine(settings, MODEL, CARD_VLLM).engine == "vllm"
    if content != "{}":
        assert "cannot be read" in caplog.text


def test_the_card_is_asked_of_the_drivers_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "NVIDIA Pretended $4"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    around = look_around(2)
    assert (around.card, around.gpus) == ("NVIDIA Pretended 3", 2)
    assert around.versions["torch"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert look_around().card is None


def test_the_log_says_which_engine_and_why(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tiny_model: Path
) -> None:
    from workers.lifecycle import load

    caplog.set_level(logging.INFO)
    settings = make_settings(model=str(tiny_model), device="cpu")
    monkeypatch.setattr(engine_choice, "visible_gpus", lambda: [])
    load(settings, identify_model(settings.model)).close()
    assert "engine auto: there is no GPU" in caplog.text
