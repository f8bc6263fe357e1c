"""``workers calibrate``: engines are measured in processes of their own, and the faster one is kept."""

from __future__ import annotations

import json
from functools import partial

import pytest
from click.testing import CliRunner

from app.errors import WorkersError
from app.model_identity import identify_model
from tests.conftest import MakeSettings
from workers.calibration import calibrate, candidates, measure_apart
from workers.cli import main
from workers.engine_choice import Surroundings, find_calibration, look_around

MODEL = identify_model("small")
VLLM = Surroundings("a card", 1, {"vllm": "0.33.0"})


def test_both_engines_are_measured_where_both_are() -> None:
    assert candidates(VLLM) == ["builtin", "vllm"]
    assert candidates(Surroundings("a card", 2, {"vllm": "0.33.0"})) == ["vllm"]
    assert candidates(Surroundings("a card", 1, {})) == ["builtin"]


def test_an_engine_that_cannot_run_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    def measure(engine: str, seconds: float) -> float:
        if engine == "vllm":
            raise WorkersError("the driver is too old")
        return 5.0

    assert calibrate(MODEL, VLLM, ["builtin", "vllm"], 1.0, measure).fastest == "builtin"
    assert "engine vllm is left out: the driver is too old" in caplog.text
    with pytest.raises(WorkersError, match="no engine"):
        calibrate(MODEL, VLLM, ["vllm"], 1.0, measure)


@pytest.mark.slow
def test_the_command_measures_and_keeps_what_it_measured(make_settings: MakeSettings) -> None:
    settings = make_settings()
    done = CliRunner().invoke(
        main, ["calibrate", "--seconds", "0.5", "--json", "--state-dir", str(settings.state_dir)],
        env={"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout.splitlines()[-1])
    assert printed["engine"] in printed["tokens_per_second"]
    assert printed["tokens_per_second"]["builtin"] > 0
    kept = find_calibration(settings, MODEL, look_around())
    assert kept is not None
    assert kept.tokens_per_second == printed["tokens_per_second"]


def test_a_measurement_that_fails_says_its_last_line(make_settings: MakeSettings) -> None:
    measure = partial(measure_apart, make_settings(model="/no/such/folder"))
    with pytest.raises(WorkersError, match="no/such/folder"):
        measure("builtin", 0.1)
