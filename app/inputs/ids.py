"""What both input files share: the error for a file that is wrong as a whole, and how ids are compared."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from app.errors import InputError


@contextmanager
def opening(path: Path) -> Iterator[BinaryIO]:
    """An input file, open for reading bytes; every failure to open or read it inside is an ``InputError``."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise InputError(str(path), "the file", None, f"cannot be read ({error.strerror or error})") from error


def canonical_id(value: object) -> str | None:
    """The text by which ids are compared (1, "1", 1.0 and "1.0" are "1"; "01" is not); None if it is no id.

    Neither null, a boolean, NaN or an infinity, a list or an object is an id, nor a text that no database can
    hold.
    """
    if isinstance(value, str):
        whole = value[:-2] if value.endswith(".0") else ""
        is_number = whole.isascii() and whole.removeprefix("-").isdigit()
        return whole if is_number else value if is_storable(value) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value)


def is_storable(text: str) -> bool:
    """Whether a text fits UTF-8 and PostgreSQL: no half of a surrogate pair, no NUL."""
    if "\0" in text:
        return False
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
