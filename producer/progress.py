"""Progress with rate and time left: a bar on a terminal, a plain line now and then elsewhere. On standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

from app.commands import say

Advance = Callable[[int], None]
_PLAIN_EVERY_S = 10.0


class Progress:
    """Shows one phase at a time; ``quiet`` shows nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = Console(stderr=True)

    @contextmanager
    def phase(self, name: str, total: int | None, *, done: int = 0) -> Iterator[Advance]:
        """Gives the function to call with each step forward; ``total`` None where the end is not known."""
        if self._quiet:
            yield lambda _: None
        elif sys.stderr.isatty():
            yield from self._bar(name, total, done)
        else:
            line = _PlainLine(name, total, done)
            yield line.advance
            line.say("done")

    def _bar(self, name: str, total: int | None, done: int) -> Iterator[Advance]:
        columns = (
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), MofNCompleteColumn(), _Rate(),
            TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        with RichProgress(*columns, console=self._console) as bar:
            task = bar.add_task(name, total=total, completed=done)
            yield lambda step: bar.advance(task, step)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f}/s", style="progress.data.speed")


class _PlainLine:
    def __init__(self, name: str, total: int | None, done: int) -> None:
        self._name, self._total, self._done, self._first = name, total, done, done
        self._began = self._said = time.monotonic()

    def advance(self, step: int) -> None:
        self._done += step
        if time.monotonic() - self._said >= _PLAIN_EVERY_S:
            self.say()

    def say(self, end: str = "") -> None:
        self._said = time.monotonic()
        seconds = self._said - self._began
        rate = (self._done - self._first) / seconds if seconds else 0.0
        parts = [f"{self._name}: {self._done:,}" + (f" of {self._total:,}" if self._total is not None else "")]
        if rate:
            parts.append(f"{rate:,.1f}/s")
            if self._total is not None and not end:
                parts.append(f"{(self._total - self._done) / rate:,.0f} s left")
        say(", ".join([*parts, f"{seconds:.0f} s", *([end] if end else [])]), err=True)
