"""Modules of our names in the current folder are never executed in place of ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.queue.embedded import EmbeddedBroker
from tests.support.commands import SCENES
from workers.exit_codes import EXIT_CANNOT_START

BIN = Path(sys.executable).parent
MARK = "import pathlib\npathlib.Path(__file__).with_name('executed').touch()\n"


def plant(folder: Path, name: str) -> Path:
    """A module that tells when it is executed: ``app.py``, or ``app/__init__.py`` where the name has no ending."""
    path = folder / name if name.endswith(".py") else folder / name / "__init__.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(MARK)
    return path


def run(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """A command with this folder as the current one, embedded servers and no GPU."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "FARM_SHUTDOWN_GRACE_S": "1", "FARM_THREADS": "1"}
    return subprocess.run(
        [str(word) for word in command], cwd=folder, env=environment, capture_output=True, text=True, timeout=200,
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


def executed(folder: Path) -> list[Path]:
    return list(folder.rglob("executed"))


@pytest.mark.parametrize("name", ["app.py", "app", "producer.py", "producer"])
def test_a_typed_celery_refuses_a_foreign_module_by_its_path(tmp_path: Path, name: str) -> None:
    planted = plant(tmp_path, name)
    done = run(tmp_path, BIN / "celery", "-A", "workers", "worker")
    assert done.returncode == EXIT_CANNOT_START
    assert done.stderr.startswith(f"Error: {planted} stands in place of ")
    assert len(done.stderr.splitlines()) == 1
    assert executed(tmp_path) == []


def test_a_folder_of_data_with_our_name_is_no_module(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    assert run(tmp_path, BIN / "celery", "-A", "workers", "report").returncode == 0


@pytest.mark.parametrize("command", ["producer", "workers"])
def test_our_commands_as_modules_are_ours(tmp_path: Path, command: str) -> None:
    plant(tmp_path, "app")
    done = run(tmp_path, sys.executable, "-m", command, "--help")
    assert done.returncode == 0, done.stderr
    assert executed(tmp_path) == []


def test_a_run_in_a_folder_of_foreign_modules_executes_none(short_folder: Path) -> None:
    for name in ("app", "workers.py", "producer.py"):
        plant(short_folder, name)
    shutil.copytree(SCENES, short_folder / "in")
    candidates = json.loads((SCENES / "recall_results.json").read_text())["per_image_top100_candidates"]
    few = {"per_image_top100_candidates": dict(list(candidates.items())[:1])}
    (short_folder / "in" / "few.json").write_text(json.dumps(few))
    try:
        done = run(
            short_folder, BIN / "producer", "run", "--stage1-result", "in/few.json", "--input-data", "in/images.json",
            "--output", "out.json", "--num-gpus", "0", "--top-k", "1", "--max-new-tokens", "4", "--strict",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads((short_folder / "out.json").read_text())["results"]
        assert executed(short_folder) == []
    finally:
        EmbeddedBroker(short_folder.resolve() / ".farm" / "broker").stop()
