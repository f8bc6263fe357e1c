"""The live screen: whole lines in every width, and plain ones without a terminal."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence

import pytest
from rich.console import Console

from app.commands import in_words
from app.results.screen import watch
from app.results.status import Status, WorkerStatus
from tests.security.test_printable import HOSTILE, harmful

GIB = 2**30


def a_run(done: int, name: str = "default") -> Status:
    return Status(
        run=name, state="active", priority=0, age=9.0, model="small", expected=1200, done=done, failed=3, claimed=4,
        queued=5, pending=1197 - done, stale=0, texts=done, texts_reused=0, texts_cut_off=0,
        texts_repeating=0, texts_unclosed=0, tokens=done, rate=0.5,
        eta=7300.0, failures={}, dropped={}, dead_letters=0, workers=["w"], notes=[],
    )  # fmt: skip


def a_worker(error: str = "") -> WorkerStatus:
    return WorkerStatus(
        name="host-1:gpu0-0:12345678", host="host-1", device="cuda", engine="builtin",
        model="Qwen/Qwen3-VL-8B-Instruct",
        age=60.0, seen=1.0, restarts=0, in_flight=4, descriptions_per_second=9.81, tokens_per_second=402.0,
        rows_at_work=241.0, rows_possible=256, oldest_claim_age_seconds=3.0, memory={"device": 60 * GIB},
        last_error=error,
    )  # fmt: skip


def shown(width: int, looks: Sequence[tuple[list[Status], list[WorkerStatus]]], *, terminal: bool = True) -> str:
    """What a console of so many columns is sent."""
    sent = io.StringIO()
    rest = iter(looks)
    watch(lambda: next(rest), 0.0, Console(file=sent, width=width, force_terminal=terminal, color_system=None))
    return sent.getvalue()


@pytest.mark.parametrize("width", [80, 200])
def test_no_line_is_torn_and_what_matters_is_there(width: int) -> None:
    look = ([a_run(1197, "a rather long name of a run " * 3)], [a_worker("image unreadable: a.png " * 20)])
    lines = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", shown(width, [look])).splitlines()
    assert all(len(line.rstrip()) <= width for line in lines)
    lines = lines[max(at for at, line in enumerate(lines) if line.startswith("RUN")) :]  # as it stands at the end
    text = "\n".join(lines)
    for word in ("1,197/1,200", "about 2 hours", "9.8", "241/256", "60.0 GiB", "image unread"):
        assert word in text
    assert ("Qwen/Qwen3-VL-8B-Instruct" in text) == (width == 200)
    assert len([line for line in lines if line.strip()]) == 4, "a head and a line of each table"


def test_a_screen_is_refreshed_in_place() -> None:
    sent = shown(100, [([a_run(1)], [a_worker()]), ([a_run(2)], []), ([a_run(1197)], [])])
    assert sent.count("\x1b[1A") >= 2, "the cursor goes up again"
    assert "none is up" in sent


def test_what_comes_from_data_steers_no_screen() -> None:
    sent = shown(200, [([a_run(1197, HOSTILE)], [a_worker(HOSTILE)])])
    assert "owned" in sent
    assert "\x07" not in sent
    assert "]0;owned" not in sent.replace(r"\x1b]0;owned", "")
    assert "\u202e" not in sent


def test_without_a_terminal_a_look_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    shown(80, [([a_run(1)], []), ([a_run(1197, HOSTILE)], [])], terminal=False)
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("run default, active, 1 of 1200 pairs done, 3 failed, 1196 pending, 0.5 pairs/s")
    assert not harmful(last)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "time left unknown"), (0.0, "nothing left"), (20.0, "less than a minute left"),
        (50.0, "about 1 minute left"), (170.0, "about 3 minutes left"), (5300.0, "about 88 minutes left"),
        (7300.0, "about 2 hours left"), (90_000.0, "about 25 hours left"), (200_000.0, "about 2 days left"),
    ],
)  # fmt: skip
def test_time_is_said_in_words(seconds: float | None, words: str) -> None:
    assert in_words(seconds) == words


def test_a_status_is_still_json() -> None:
    assert json.loads(json.dumps(a_run(1).as_dict()))["tokens"] == 1
