"""Log lines: for people, or as JSON; each about a pair with its run, image, subject and object.

Which pair a line is about is known to the thread that works at it (``about``), so that a line of any module carries it.
Log files may be moved by logrotate at any time: the next line goes into a new one.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from app.errors import printable

_ABOUT: ContextVar[dict[str, str] | None] = ContextVar("about", default=None)
_STREAMS = (1, 2)  # standard output and error
_JSON_FIELDS = ("levelname", "name", "message")
_JSON_NAMES = {"levelname": "level", "name": "logger"}


@contextmanager
def about(**names: object) -> Iterator[None]:
    """Lines that this thread logs for as long as the block lasts are about what these names say."""
    token = _ABOUT.set({**(_ABOUT.get() or {}), **{name: str(value) for name, value in names.items()}})
    try:
        yield
    finally:
        _ABOUT.reset(token)


def set_up_logging(
    level: int | str = logging.WARNING, form: str = "text", file: Path | str | None = None, *, force: bool = False
) -> None:
    """Log lines go to a file, or to standard error; standard output is for results. ``form`` is text or json.

    What was set up before stays, unless ``force``.
    """
    handler: logging.Handler = _MovableFile(file) if file else logging.StreamHandler(sys.stderr)
    set_up_handler(handler, level, form, force=force)


def set_up_handler(
    handler: logging.Handler, level: int | str = logging.WARNING, form: str = "text", *, force: bool = False
) -> None:
    """Log by this handler alone."""
    logging.basicConfig(level=level, handlers=[handler], force=force)
    for each in logging.root.handlers:
        each.addFilter(_add_names)
        each.setFormatter(formatter(form))
    # One line a pair from Celery and one from kombu each would bury the rest; Flower has them as events.
    for name in ("celery.worker.strategy", "celery.app.trace", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def formatter(form: str) -> logging.Formatter:
    """That of ``--log-format``."""
    if form == "json":
        return JsonFormatter(_JSON_FIELDS, rename_fields=_JSON_NAMES, timestamp=True)
    if form == "bare":  # what it goes through adds time and level
        return LineFormatter("%(name)s: %(message)s")
    return LineFormatter("%(asctime)s %(levelname)-8s %(name)s: %(message)s")


def _add_names(record: logging.LogRecord) -> bool:
    names = _ABOUT.get() or {}
    record.__dict__.update(names)
    record.__dict__["_names"] = tuple(names)  # what begins with an underscore is no field of the JSON
    return True


class LineFormatter(logging.Formatter):
    """A record is one line whatever its message says; of a traceback every further line is indented."""

    def format(self, record: logging.LogRecord) -> str:
        """As logging says."""
        traced, record.exc_info, record.exc_text = record.exc_info, None, None
        stack, record.stack_info = record.stack_info, None
        lines = [printable(super().format(record) + self._names(record))]
        if traced:
            lines += self.formatException(traced).split("\n")  # type: ignore[arg-type]
        if stack:
            lines += stack.split("\n")
        record.exc_info, record.stack_info = traced, stack
        return "\n    ".join(map(printable, lines))

    @staticmethod
    def _names(record: logging.LogRecord) -> str:
        names: tuple[str, ...] = getattr(record, "_names", ())
        shown = " ".join(f"{name}={_quoted(getattr(record, name))}" for name in names)
        return f" [{shown}]" if shown else ""


def _quoted(value: Any) -> str:
    """A word as it is, anything else so that its end can be seen."""
    text = str(value)
    plain = text and not any(each.isspace() or each in '"=[]' for each in text)
    return text if plain else json.dumps(text, ensure_ascii=False)


class _MovableFile(WatchedFileHandler):
    """A log file that logrotate may move; standard error goes with it, where the launcher had put it into this file."""

    def _open(self) -> Any:
        # What workers log is their owner's, as the file was that the launcher made.
        return open(self.baseFilename, self.mode, encoding="utf-8", opener=lambda path, how: os.open(path, how, 0o600))

    def reopenIfNeeded(self) -> None:
        """As logging says."""
        before = (self.dev, self.ino)
        super().reopenIfNeeded()
        if (self.dev, self.ino) == before or self.stream is None:
            return
        for descriptor in _STREAMS:
            held = os.fstat(descriptor)
            if (held.st_dev, held.st_ino) == before:
                os.dup2(self.stream.fileno(), descriptor)
