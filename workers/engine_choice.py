"""Which engine describes, where the settings leave it open: by measurement, else by what is installed. No torch."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from app.database.private_files import make_private_file, make_private_folder
from app.model_identity import ModelIdentity
from app.processes import visible_gpus
from app.settings import Settings

log = logging.getLogger(__name__)

_FILE = "calibration.json"
_VERSIONS_OF = ("relation-farm", "torch", "transformers", "vllm")


@dataclass(frozen=True)
class Surroundings:
    """What an engine's speed depends on, besides the model."""

    card: str | None  # the GPU's name; None is the CPU
    gpus: int  # of one worker
    versions: dict[str, str]  # of the packages that compute; those that are not installed are absent

    @property
    def has_vllm(self) -> bool:
        """Whether vLLM is installed."""
        return "vllm" in self.versions


@dataclass(frozen=True)
class Choice:
    """An engine, and why it."""

    engine: str
    why: str


@dataclass(frozen=True)
class Calibration:
    """What was measured: new tokens a second of each engine, on one card, with one model and these versions."""

    model_key: str
    surroundings: Surroundings
    tokens_per_second: dict[str, float]
    measured_at: float = field(default_factory=time.time)  # seconds since 1970

    @property
    def fastest(self) -> str:
        """The engine of most tokens a second."""
        return max(self.tokens_per_second, key=lambda name: self.tokens_per_second[name])


def choose_engine(settings: Settings, model: ModelIdentity, around: Surroundings) -> Choice:
    """The engine of a worker: the one that was asked for; on a GPU the one measured faster, else vLLM where it is
    installed; on a CPU what the model's family tells (``auto`` of ``load_engine``).
    """
    if settings.engine != "auto":
        return Choice(settings.engine, "it was asked for")
    if around.card is None:
        return Choice("auto", "there is no GPU")
    known = find_calibration(settings, model, around)
    if known is not None:
        figures = ", ".join(f"{name} {speed:.0f} tokens/s" for name, speed in known.tokens_per_second.items())
        return Choice(known.fastest, f"it was measured faster on {around.card}: {figures}")
    if around.has_vllm:
        return Choice("vllm", "it is installed, and `workers calibrate` has measured nothing here")
    return Choice("auto", "vLLM is not installed")


def look_around(gpus: int = 1) -> Surroundings:
    """This process's surroundings: the first GPU that it sees, and what is installed."""
    versions = {}
    for name in _VERSIONS_OF:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return Surroundings(_card(), gpus, versions)


def keep_calibration(settings: Settings, calibration: Calibration) -> Path:
    """Write it into the state folder, in place of an older one of the same surroundings; gives the file."""
    path = settings.state_dir.resolve() / _FILE
    kept = [one for one in _read(path) if _key(one) != _key(calibration)]
    make_private_folder(path.parent)
    fresh = path.with_suffix(f".{os.getpid()}")
    make_private_file(fresh)
    fresh.write_text(json.dumps([asdict(one) for one in [*kept, calibration]], indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)
    return path


def find_calibration(settings: Settings, model: ModelIdentity, around: Surroundings) -> Calibration | None:
    """What was measured with this model on such a card with these very versions."""
    found = (one for one in _read(settings.state_dir.resolve() / _FILE) if one.model_key == model.key)
    return next((one for one in found if one.surroundings == around and one.tokens_per_second), None)


def _key(calibration: Calibration) -> tuple[str, str]:
    return calibration.model_key, json.dumps(asdict(calibration.surroundings), sort_keys=True)


def _read(path: Path) -> list[Calibration]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [Calibration(**{**entry, "surroundings": Surroundings(**entry["surroundings"])}) for entry in entries]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, LookupError, TypeError) as error:
        log.warning("%s cannot be read, as if nothing had been measured: %s", path, error)
        return []


def _card() -> str | None:
    """The name of the first GPU that this process sees, by the driver's tool."""
    gpus = visible_gpus()
    if not gpus:
        return None
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", "-i", gpus[0]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "a GPU of unknown name"
    return done.stdout.strip() or "a GPU of unknown name"
