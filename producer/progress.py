"""Progress with rate and time left: a bar on a terminal, a plain line now and then elsewhere. On standard error."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.live import Live
from rich.logging import RichHandler
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
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from app.commands import in_words, say
from app.errors import printable
from app.logs import set_up_handler, set_up_logging
from app.settings import Settings

Advance = Callable[[int], None]
Show = Callable[[str, int, float], None]
"""Called with a phase in words, the pairs that have ended, and pairs a second (0 where that is not known yet)."""
_PLAIN_EVERY_S = 10.0


class Progress:
    """Shows one phase at a time; ``quiet`` shows nothing. Log lines and reports go above the bar."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self.console = Console(stderr=True)

    def say(self, line: str) -> None:
        """A line for people on standard error: on a terminal above the bar, and not through it."""
        if self.console.is_terminal:
            self.console.print(Text(printable(line)))
        else:
            say(line, err=True)

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
        # Where a line is too narrow for all of it, columns are cut and the line is not torn.
        with RichProgress(*columns, console=self.console) as bar:
            task = bar.add_task(name, total=total, completed=done)
            yield lambda step: bar.advance(task, step)

    @contextmanager
    def describing(self, name: str, total: int, *, done: int = 0) -> Iterator[Show]:
        """The phase that takes hours; gives the function to call with what is to be seen of it now and then."""
        if self._quiet:
            yield lambda *_: None
        elif self.console.is_terminal:
            with Live(console=self.console, auto_refresh=False) as live:
                yield lambda what, now, rate: live.update(self._line(what, now, total, rate), refresh=True)
        else:
            plain = _PlainLine(name, total, done)
            yield plain.show
            plain.say("done")

    def _line(self, what: str, done: int, total: int, rate: float) -> Table:
        parts = [f"{done:,}/{total:,} pairs"]
        if rate:
            parts += [f"{rate:,.2f}/s", in_words((total - done) / rate)]
        line = Table.grid(padding=(0, 1), expand=False)
        line.add_column(no_wrap=True, overflow="ellipsis")
        line.add_column(min_width=8)
        line.add_column(no_wrap=True, overflow="ellipsis")
        bar = ProgressBar(total=max(1, total), completed=done, width=max(8, self.console.width // 6))
        line.add_row(Text(printable(what)), bar, Text(", ".join(parts)))
        return line


def log_above(progress: Progress, settings: Settings) -> None:
    """Log as the settings say; on a terminal, lines for people go above the bar."""
    level = settings.log_level or logging.WARNING
    if settings.log_format == "text" and progress.console.is_terminal:
        handler = RichHandler(console=progress.console, show_path=False, markup=False, highlighter=NullHighlighter())
        set_up_handler(handler, level, "bare", force=True)
    else:
        set_up_logging(level, settings.log_format, force=True)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f}/s", style="progress.data.speed")


class _PlainLine:
    def __init__(self, name: str, total: int | None, done: int) -> None:
        self._name, self._total, self._done, self._first = name, total, done, done
        self._began = self._said = time.monotonic()
        self._rate: float | None = None  # where it is not simply that since the beginning

    def advance(self, step: int) -> None:
        self._done += step
        if time.monotonic() - self._said >= _PLAIN_EVERY_S:
            self.say()

    def show(self, what: str, done: int, rate: float) -> None:
        changed, self._name = what.partition(" (")[0] != self._name.partition(" (")[0], what
        self._done, self._rate = done, rate
        if changed or time.monotonic() - self._said >= _PLAIN_EVERY_S:
            self.say()

    def say(self, end: str = "") -> None:
        self._said = time.monotonic()
        seconds = self._said - self._began
        rate = (self._done - self._first) / seconds if seconds else 0.0
        rate = rate if self._rate is None else self._rate
        parts = [f"{self._name}: {self._done:,}" + (f" of {self._total:,}" if self._total is not None else "")]
        if rate:
            parts.append(f"{rate:,.1f}/s")
            if self._total is not None and not end:
                parts.append(in_words((self._total - self._done) / rate))
        say(", ".join([*parts, f"{seconds:.0f} s", *([end] if end else [])]), err=True)
