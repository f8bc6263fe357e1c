"""How fast each engine is with a model on this machine: each measured in a process of its own, one after another.

python -m workers.calibration ENGINE SECONDS   (settings by the environment; prints one JSON line)
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
from collections.abc import Callable, Sequence

from app.errors import WorkersError
from app.model_identity import ModelIdentity
from app.processes import die_with_parent, python_command, python_path
from app.settings import Settings
from workers.engine_choice import Calibration, Surroundings

log = logging.getLogger(__name__)

_PATIENCE_S = 900.0  # for a model to load
MARK = "measured: "

Measure = Callable[[str, float], float]


def candidates(around: Surroundings) -> list[str]:
    """The engines worth measuring here."""
    several = ["vllm"] if around.has_vllm else []
    return several if around.gpus > 1 else ["builtin", *several]


def calibrate(
    model: ModelIdentity, around: Surroundings, engines: Sequence[str], seconds: float, measure: Measure
) -> Calibration:
    """Measure the engines; one that cannot run is left out. Raises WorkersError if none can."""
    speeds: dict[str, float] = {}
    for engine in engines:
        log.info("measuring %s for %.0f s, once the model is loaded", engine, seconds)
        try:
            speeds[engine] = measure(engine, seconds)
        except WorkersError as error:
            log.warning("engine %s is left out: %s", engine, error)
    if not speeds:
        raise WorkersError("no engine could be measured: the lines above say why")
    return Calibration(model.key, around, speeds)


def measure_apart(settings: Settings, engine: str, seconds: float) -> float:
    """New tokens a second, measured in a process of its own. Raises WorkersError with the last line of what it said."""
    try:
        done = subprocess.run(
            python_command("workers.measure_engine", engine, str(seconds)),
            env={**os.environ, **settings.environment(), **python_path(), "FARM_ENGINE": engine},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE_S + seconds,
            check=False, preexec_fn=die_with_parent,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise WorkersError(f"it was not done after {error.timeout:.0f} s") from error
    found = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not found:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise WorkersError(lines[-1] if lines else f"it ended with exit code {done.returncode}")
    return float(json.loads(found[-1].removeprefix(MARK)))
