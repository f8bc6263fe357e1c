"""What lies under a state folder is its owner's alone, whatever the umask of who makes it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

from tests.support.processes import CHECKOUT
from tests.support.runs import write_inputs


def modes(folder: Path) -> dict[str, str]:
    """Everything under the folder, and the folder, that others have any right to."""
    found = {path: path.lstat() for path in (folder, *folder.rglob("*"))}
    return {str(path): oct(status.st_mode) for path, status in found.items() if status.st_mode & 0o077}


def test_a_run_leaves_nothing_that_others_can_read(short_folder: Path, tmp_path: Path) -> None:
    inputs, state = write_inputs(tmp_path / "in", images=1, pairs=1, predicates=1), short_folder / "state"
    files = ("--stage1-result", inputs.stage1, "--input-data", inputs.images, "--output", tmp_path / "out.json")
    command = [sys.executable, "-m", "producer", "run", *map(str, files), "--max-new-tokens", "4", "--num-gpus", "0"]
    done = subprocess.run(
        [*command, "--state-dir", str(state)], cwd=CHECKOUT, capture_output=True, text=True, umask=0o000, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {"farm.sqlite", "broker", "logs"} <= {path.name for path in state.iterdir()}
    assert modes(state) == {}
    assert stat.S_IMODE((tmp_path / "out.json").stat().st_mode) == 0o666, "what is exported is for whom the umask says"


def test_files_of_an_older_version_are_taken_back(short_folder: Path, tmp_path: Path) -> None:
    inputs, state = write_inputs(tmp_path / "in", images=1, pairs=1, predicates=1), short_folder / "state"
    files = ("--stage1-result", inputs.stage1, "--input-data", inputs.images, "--state-dir", state)
    command = [sys.executable, "-m", "producer", "enqueue", *map(str, files)]
    subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True)
    for path in (state / "broker", state / "farm.sqlite"):
        path.chmod(0o755)
    try:
        subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True)
        assert modes(state) == {}
    finally:
        stop = [sys.executable, "-m", "producer", "broker", "stop", "--state-dir", str(state)]
        subprocess.run(stop, cwd=CHECKOUT, check=True, capture_output=True, env=os.environ)
