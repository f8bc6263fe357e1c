"""The wheel runs: built from the sources, installed elsewhere, one small job in an empty folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.database.revision import revisions
from app.queue.embedded import EmbeddedBroker
from tests.support.commands import SCENES
from tests.support.processes import CHECKOUT

SOURCES = ("alembic", "app", "producer", "workers", "LICENSE", "README.md", "pyproject.toml", "setup.py")


def run(folder: Path, *command: object, status: int = 0) -> str:
    """What a command in this folder prints, on both streams; nothing of the checkout is in its environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        env=kept | {"CUDA_VISIBLE_DEVICES": "", "FARM_THREADS": "1", "FARM_SHUTDOWN_GRACE_S": "1"},
        timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, without the network."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        path = CHECKOUT / name
        if path.is_dir():
            shutil.copytree(path, folder / "src" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, folder / "src" / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-index")
    run(folder, *pip, "--no-build-isolation", "-q", "-w", folder / "out", folder / "src")
    [built] = (folder / "out").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel and this environment's own dependencies, but not its checkout."""
    folder = tmp_path_factory.mktemp("installed") / "environment"
    venv.create(folder, with_pip=False)
    [packages] = folder.glob("lib/python*/site-packages")
    # A path in a .pth file is searched, but the .pth files under it (an editable installation's) are not read.
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", folder / "bin" / "python")
    run(folder, *pip, "install", "--no-deps", "--no-index", "-q", wheel)
    return folder / "bin"


@pytest.fixture
def folder(short_folder: Path) -> Iterator[Path]:
    """An empty folder, whose embedded broker is stopped at the end."""
    yield short_folder
    EmbeddedBroker(short_folder.resolve() / ".farm" / "broker").stop()


def test_the_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {
        str(path.relative_to(CHECKOUT))
        for package in ("app", "producer", "workers")
        for path in (CHECKOUT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    wanted |= {
        f"app/database/migrations/{path.relative_to(CHECKOUT / 'alembic')}"
        for pattern in ("*.py", "*.mako", "versions/*.py")
        for path in (CHECKOUT / "alembic").glob(pattern)
    }
    assert held == wanted


def test_an_installed_wheel_runs_a_job_in_an_empty_folder(installed: Path, folder: Path) -> None:
    place = run(folder, installed / "python", "-c", "import app, workers; print(app.__file__, workers.__file__)")
    assert place.count(str(installed.parent)) == 2
    shutil.copytree(SCENES, folder / "in")
    candidates = json.loads((SCENES / "recall_results.json").read_text())["per_image_top100_candidates"]
    few = {"per_image_top100_candidates": dict(list(candidates.items())[:1])}
    (folder / "in" / "few.json").write_text(json.dumps(few))
    run(
        folder, installed / "producer", "run", "--stage1-result", "in/few.json", "--input-data", "in/images.json",
        "--output", "out.json", "--num-gpus", "0", "--top-k", "1", "--max-new-tokens", "4", "--strict",
    )  # fmt: skip
    results = json.loads((folder / "out.json").read_text())["results"]
    assert results
    assert all(one["generated_description"] for result in results for one in result["stage2_generated"])
    assert f"schema {revisions()[-1]}: nothing to do" in run(folder, installed / "producer", "migrate")
    assert "done" in run(folder, installed / "results", "status")


def test_an_installed_wheel_makes_the_schema_and_says_what_it_is(installed: Path, folder: Path) -> None:
    assert "no database" in run(folder, installed / "results", "status", status=1)
    assert list(folder.iterdir()) == []
    assert f"schema {revisions()[-1]} (before: none)" in run(folder, installed / "producer", "migrate")
