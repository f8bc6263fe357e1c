"""Where an export goes: links are followed, pipes and devices stay what they are, nothing half is left."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from app.database.connection import open_database
from app.errors import ExportError
from app.results.output import refuse_unwritable, whole_output
from tests.conftest import MakeSettings
from tests.support.processes import CHECKOUT
from tests.support.runs import pair, store_run

RESULTS = [sys.executable, "-c", "from app.results.cli import main; main()", "export", "--out"]


def write(out: Path, text: str = "whole") -> None:
    with whole_output(out) as temporary:
        temporary.write_text(text)


@pytest.fixture
def filled(short_folder: Path, make_settings: MakeSettings) -> dict[str, str]:
    """The environment of a command that finds a run."""
    settings = make_settings(state_dir=short_folder)
    database = open_database(settings)
    store_run(database, [pair(0)])
    database.dispose()
    return {**os.environ, "FARM_STATE_DIR": str(short_folder)}


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "real.json", tmp_path / "link.json"
    link.symlink_to(target)
    for text in ("new", "replaced"):
        write(link, text)
        assert (link.is_symlink(), target.read_text()) == (True, text)
    assert os.listdir(target.parent) == ["real.json"]


def test_a_file_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    out.touch(mode=0o600)
    write(out)
    assert (stat.S_IMODE(out.stat().st_mode), out.read_text()) == (0o600, "whole")


def test_a_device_stays_a_device() -> None:
    before = os.stat(os.devnull)
    write(Path(os.devnull))
    after = os.stat(os.devnull)
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert stat.S_ISCHR(after.st_mode)


def test_a_pipe_gets_the_whole_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    write(pipe, "x" * 1_000_000)
    reader.join(60)
    assert (len(found[0]), stat.S_ISFIFO(pipe.stat().st_mode)) == (1_000_000, True)


def test_nothing_goes_to_a_pipe_of_what_failed(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

    def fail() -> None:
        with whole_output(pipe) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert os.read(reader, 10) == b""
    os.close(reader)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_link_to_a_folder(path: Path) -> None:
    path.symlink_to(path.parent)


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def below_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("")


@pytest.mark.parametrize("make", [a_folder, a_link_to_a_folder, a_link_to_itself, below_a_file])
def test_what_cannot_be_written_is_told_beforehand_and_then(tmp_path: Path, make: Callable[[Path], None]) -> None:
    out = tmp_path / "place" / "out"
    out.parent.mkdir()
    make(out)
    for attempt in (refuse_unwritable, write):
        with pytest.raises(ExportError, match=str(out)):
            attempt(out)
    assert not list(tmp_path.rglob("*.part"))


def test_the_standard_output_is_a_place(filled: dict[str, str]) -> None:
    done = subprocess.run([*RESULTS, "-"], env=filled, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["results"] == []
    assert "0 results of run default" in done.stderr


@pytest.mark.parametrize("out", ["/dev/stdout", "/proc/self/fd/1"])
def test_a_door_to_the_standard_output_is_written_through(filled: dict[str, str], tmp_path: Path, out: str) -> None:
    with (tmp_path / "log").open("a") as log:
        log.write("before\n")
        log.flush()
        subprocess.run([*RESULTS, out], env=filled, cwd=CHECKOUT, stdout=log, check=True)
    first, rest = (tmp_path / "log").read_text().split("\n", 1)
    assert (first, json.loads(rest)["results"]) == ("before", [])


def test_a_reader_that_goes_away_is_one_line(filled: dict[str, str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*RESULTS, "-"], env=filled, cwd=CHECKOUT, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 1
    assert done.stderr == "Error: -: Broken pipe\n"


def test_a_pipe_that_nobody_reads_is_named_as_what_is_waited_for(filled: dict[str, str], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen([*RESULTS, str(pipe)], env=filled, cwd=CHECKOUT, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        assert run.stderr.readline() == f"waiting for a reader of {pipe}\n"
        assert json.loads(pipe.read_text())["results"] == []
        assert run.wait(60) == 0


def test_a_closed_standard_output_is_one_line(filled: dict[str, str]) -> None:
    shell = ["sh", "-c", '"$@" >&-', "sh", *RESULTS, "-"]
    done = subprocess.run(shell, cwd=CHECKOUT, env=filled, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "Error: -: the standard output is closed\n")


def test_a_line_feed_in_a_files_name_forges_no_line(filled: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "a\nforged\x1b[2J.json"
    done = subprocess.run([*RESULTS, out], cwd=CHECKOUT, env=filled, stderr=subprocess.PIPE, text=True, check=True)
    assert out.exists()
    assert len(done.stderr.splitlines()) == 1
    assert r"a\nforged\x1b[2J.json: 0 results" in done.stderr
