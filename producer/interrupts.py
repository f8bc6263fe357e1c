"""Ctrl-C, SIGTERM and a closed terminal end a command once, in order; whoever is impatient hears what it is doing."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from app.commands import say

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """The first signal raises KeyboardInterrupt or SystemExit; later ones, and those within ``held``, are answered."""

    def __init__(self) -> None:
        self._doing: str | None = None
        self.hurry: Callable[[], str] | None = None  # what a further Ctrl-C does; gives what that costs

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch for signals as long as the block lasts. A signal that is ignored (``nohup``) stays so."""
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self._come)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def held(self, doing: str) -> Iterator[None]:
        """Let nothing break the block, which ``doing`` describes."""
        self._doing, before = doing, self._doing
        try:
            yield
        finally:
            self._doing = before

    def _come(self, number: int, _frame: FrameType | None) -> None:
        if self._doing is not None:
            with suppress(OSError):  # the terminal may be gone
                hurried = self.hurry is not None and number == signal.SIGINT
                say(self.hurry() if hurried and self.hurry else f"{self._doing}; nothing is lost", err=True)
            return
        self._doing = "stopping already: workers finish or requeue their pairs first"
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)
