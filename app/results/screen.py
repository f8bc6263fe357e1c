"""The live screen of ``results status --watch``: every run and every worker that is up, refreshed in place.

Without a terminal the same looks are plain lines, one a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from app.commands import in_words, say
from app.errors import printable
from app.results.status import Status, WorkerStatus

Looks = Callable[[], tuple[Sequence[Status], Sequence[WorkerStatus]]]

_WIDE, _WIDEST = 100, 150  # columns of the terminal from which more is shown
_SHARES = {"RUN": 5, "WORKER": 6, "HOST": 8, "MODEL": 6, "LAST ERROR": 4}
"""Columns of names: each is at most the width divided by this."""


def watch(look: Looks, every_s: float, console: Console | None = None) -> None:
    """Show every look until no run has pending pairs, or Ctrl-C."""
    console = console or Console()
    try:
        if console.is_terminal:
            _live(look, every_s, console)
        else:
            for runs, _ in _looks(look, every_s):
                for run in runs:
                    say(line_of(run))
    except KeyboardInterrupt:
        return  # who watches has seen enough; nothing was under way


def _looks(look: Looks, every_s: float) -> Iterator[tuple[Sequence[Status], Sequence[WorkerStatus]]]:
    while True:
        runs, workers = look()
        yield runs, workers
        if not any(run.pending for run in runs):
            return
        time.sleep(every_s)


def _live(look: Looks, every_s: float, console: Console) -> None:
    with Live(console=console, auto_refresh=False, vertical_overflow="ellipsis") as live:
        for runs, workers in _looks(look, every_s):
            live.update(screen(runs, workers, console.width), refresh=True)


def screen(runs: Sequence[Status], workers: Sequence[WorkerStatus], width: int) -> RenderableType:
    """What a terminal of so many columns shows of one look."""
    notes = [Text(printable(f"{run.run}: {note}"), style="yellow") for run in runs for note in run.notes]
    return Group(_runs(runs, width), Text(), _workers(workers, width), *notes)


def line_of(run: Status) -> str:
    """A run as one plain line."""
    parts = [f"run {run.run}", run.state, f"{run.done} of {run.expected} pairs done", f"{run.failed} failed"]
    parts += [f"{run.pending} pending", f"{run.rate:g} pairs/s", in_words(run.eta), f"{len(run.workers)} workers"]
    return printable(", ".join([*parts, *run.notes]))


def _runs(runs: Sequence[Status], width: int) -> Table:
    table = _table(width, "RUN", "", "DONE", ">FAILED", ">PAIRS/S", "TIME LEFT", *(["STATE"] if width >= _WIDE else []))
    for run in runs:
        ended = run.done + run.failed
        bar = ProgressBar(total=max(1, run.expected), completed=ended, width=max(10, width // 8))
        row: list[RenderableType] = [
            _text(run.run), bar, Text(f"{run.done:,}/{run.expected:,}"), Text(f"{run.failed:,}"), Text(f"{run.rate:g}"),
            Text(in_words(run.eta).removesuffix(" left")),
        ]  # fmt: skip
        table.add_row(*row, *([_text(run.state)] if width >= _WIDE else []))
    return table


def _workers(workers: Sequence[WorkerStatus], width: int) -> Table:
    more = (["HOST", "DEVICE"] if width >= _WIDE else []) + (["MODEL"] if width >= _WIDEST else [])
    table = _table(width, "WORKER", *more, ">DESCR/S", ">TOKENS/S", ">ROWS", ">MEMORY", "LAST ERROR")
    for each in workers:
        rows = f"{each.rows_at_work:.0f}/{each.rows_possible}" if each.rows_possible else f"{each.rows_at_work:.0f}"
        known = [each.host, each.device][: 2 * (width >= _WIDE)] + [each.model] * (width >= _WIDEST)
        numbers = (f"{each.descriptions_per_second:.1f}", f"{each.tokens_per_second:.0f}", rows, _memory(each.memory))
        table.add_row(_text(_short(each)), *map(_text, known), *map(Text, numbers), _text(each.last_error))
    if not workers:
        table.add_row(Text("none is up"))
    return table


def _table(width: int, *heads: str) -> Table:
    """Columns by their heads, ">" is to the right. Names are cut to their share of the width, numbers never."""
    table = Table(box=None, padding=(0, 2, 0, 0), expand=False)
    for head in heads:
        name = head.removeprefix(">")
        share = width // _SHARES[name] if name in _SHARES else None
        right = head.startswith(">")
        table.add_column(
            name, justify="right" if right else "left", no_wrap=True, overflow="ellipsis", max_width=share
        )  # fmt: skip
    return table


def _short(worker: WorkerStatus) -> str:
    """A worker's name without its host, which has a column of its own, and without the random end."""
    return worker.name.removeprefix(f"{worker.host}:").rpartition(":")[0] or worker.name


def _memory(sizes: dict[str, int]) -> str:
    size = sizes.get("device") or sizes.get("resident", 0)
    return f"{size / 2**30:.1f} GiB"


def _text(value: str) -> Text:
    return Text(printable(value))
