"""Where an export goes: a file that appears when it is whole, or what is no file and must stay what it is."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from app.commands import say
from app.errors import ExportError

STANDARD_OUTPUT = Path("-")

_LOOK_S = 0.1
_SAY_AFTER_S = 2.0
_STANDARD = {"/dev/stdout": "/dev/fd/1", "/dev/stderr": "/dev/fd/2"}
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d{1,9})")
_SYSTEMS_OWN = ("/dev", "/proc")  # names there are doors to something else, as /dev/stdout is


@contextmanager
def whole_output(out: Path) -> Iterator[Path]:
    """A temporary file whose content goes to ``out`` when the block ends well, and nowhere when not.

    A regular file is replaced at once, and where ``out`` is a link, what it leads to. Into a pipe, a device or the
    standard output (``-``) the content is copied. Raises ExportError.
    """
    try:
        target = _file_of(out)
        folder = None if target is None else target.parent
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{(target or out).name}.", suffix=".part")
    except OSError as error:
        raise ExportError(f"{out}: {error.strerror or error}") from None
    temporary = Path(name)
    os.close(handle)
    try:
        yield temporary
        if target is None:
            _copy(temporary, out)
        else:
            _put(temporary, target)
    except OSError as error:
        raise ExportError(f"{out}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def refuse_unwritable(out: Path) -> None:
    """Raise ExportError now where ``whole_output`` would after hours of work."""
    try:
        target = _file_of(out)
        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", suffix=".part"):
                return
    except OSError as error:
        raise ExportError(f"{out}: {error.strerror or error}") from None


def _file_of(out: Path) -> Path | None:
    """The regular file to write, made or not; None where something else is there. Raises ExportError and OSError."""
    if out == STANDARD_OUTPUT:
        return None
    folder = os.path.realpath(out.parent)
    if folder.startswith(tuple(f"{own}/" for own in _SYSTEMS_OWN)) or folder in _SYSTEMS_OWN:
        return None
    target = Path(os.path.realpath(out))
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target
    if stat.S_ISREG(mode):
        return target
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        return None
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISBLK, "a disk"), (stat.S_ISSOCK, "a socket"))
    what = next((name for is_it, name in kinds if is_it(mode)), "no file")
    raise ExportError(f"{out} is {what}; name a file, or - for the standard output")


def _put(temporary: Path, target: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~mask
    temporary.chmod(mode)  # mkstemp's files are for their owner alone
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(target)


def _copy(temporary: Path, out: Path) -> None:
    with temporary.open("rb") as source:
        if out == STANDARD_OUTPUT:
            if sys.stdout is None:
                raise ExportError("-: the standard output is closed")
            try:
                sys.stdout.flush()
                shutil.copyfileobj(source, sys.stdout.buffer)
                sys.stdout.buffer.flush()
            except BrokenPipeError:  # the interpreter would flush once more at its end, and complain
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise
            return
        with _opened(out) as target:
            shutil.copyfileobj(source, target)


def _opened(out: Path) -> BinaryIO:
    """A pipe or device, opened for writing; of a pipe that nobody reads, it is said what is waited for."""
    if found := _DESCRIPTOR.fullmatch(_STANDARD.get(str(out), str(out))):
        return os.fdopen(os.dup(int(found[1])), "wb")  # opened anew, a file would be written from its beginning
    began, said = time.monotonic(), False
    while True:
        try:
            handle = os.open(out, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            if error.errno != errno.ENXIO or not stat.S_ISFIFO(out.stat().st_mode):
                raise
            if not said and time.monotonic() - began > _SAY_AFTER_S:
                said = True
                say(f"waiting for a reader of {out}", err=True)
            time.sleep(_LOOK_S)
            continue
        os.set_blocking(handle, True)
        return os.fdopen(handle, "wb")
