"""Log lines: whose pair they are about, as text and as JSON, in files that may be moved."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from app.logs import about, set_up_logging

log = logging.getLogger("a.place")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    before = logging.root.handlers[:], logging.root.level
    yield
    for handler in set(logging.root.handlers) - set(before[0]):
        handler.close()
    logging.root.handlers[:], logging.root.level = before


def test_a_line_about_a_pair_carries_its_names(tmp_path: Path) -> None:
    set_up_logging("INFO", "text", tmp_path / "log", force=True)
    with about(run="default", image=7, subject="race car", object="\x1b[2Jman"):
        log.warning("failed")
        Thread(target=log.info, args=("another thread's",)).start()
    log.info("after")
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0].endswith(r'a.place: failed [run=default image=7 subject="race car" object="\u001b[2Jman"]')
    assert lines[-1].endswith("a.place: after")


def test_json_is_one_object_a_line_whatever_is_said(tmp_path: Path) -> None:
    set_up_logging("INFO", "json", tmp_path / "log", force=True)
    with about(run="default", image="a\nb"):
        try:
            raise ValueError("a\x1b\n\u202e")
        except ValueError:
            log.exception("two\nlines %s", "\ud83d")
    raw = (tmp_path / "log").read_bytes()
    line = json.loads(raw)
    assert raw.isascii()
    assert raw.count(b"\n") == 1
    assert {name: line[name] for name in ("level", "logger", "message", "run", "image")} == {
        "level": "ERROR", "logger": "a.place", "message": "two\nlines \ud83d", "run": "default", "image": "a\nb"
    }  # fmt: skip
    assert "ValueError" in line["exc_info"]
    assert line["timestamp"]


def test_a_level_silences_what_is_below_it(tmp_path: Path) -> None:
    set_up_logging("ERROR", "text", tmp_path / "log", force=True)
    log.warning("below")
    log.error("above")
    assert "below" not in (tmp_path / "log").read_text()
    assert "above" in (tmp_path / "log").read_text()


_ROTATED = """
import logging, os, sys
from app.logs import set_up_logging
path = sys.argv[1]
set_up_logging("INFO", "text", path, force=True)
logging.info("first")
os.rename(path, path + ".1")
logging.info("second")
os.write(2, b"from below Python\\n")
"""


def test_a_file_may_be_moved_and_what_native_code_says_follows(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("ab") as output:
        subprocess.run([sys.executable, "-c", _ROTATED, path], stdout=output, stderr=output, check=True)
    old, new = (tmp_path / "log.1").read_text(), path.read_text()
    assert "first" in old
    assert "second" not in old
    assert "from below Python" not in old
    assert "second" in new
    assert "from below Python" in new
    assert path.stat().st_mode & 0o077 == 0, "what is logged is its owner's"
