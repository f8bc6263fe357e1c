"""A JSON file read value by value, so that one of several gigabytes takes a few megabytes of memory.

The grammar between values (commas, keys, brackets) is walked here; the values themselves are decoded by the
standard library's C scanner out of a sliding window of text. A UTF-8 byte order mark is accepted. Bytes that
are not UTF-8 become lone surrogates, so that they spoil the name that holds them and not the file.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from app.errors import InputError

_SPACE = re.compile(r"[ \t\n\r]*+")
_STRING_REST = re.compile(r'(?:[^"\\]++|\\.)*+', re.DOTALL)
_FLAT = r'[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+"'
_SHALLOW = rf"{_FLAT}|\[(?:{_FLAT})*+\]|\{{(?:{_FLAT})*+\}}"
_BALANCED = re.compile(rf"(?:{_FLAT}|\[(?:{_SHALLOW})*+\]|\{{(?:{_SHALLOW})*+\}})*+", re.DOTALL)
_UNTERMINATED = "Unterminated string"
_CLOSER = {"[": "]", "{": "}"}
#: An error this near to the window's end may be a token that the window cut ("-Infinity", "\\ud83d\\ude00").
_LONGEST_CUT = 16


class TooDeep:
    """Stands for a value that is nested too deeply to be built."""

    def __repr__(self) -> str:
        return "<nested too deeply>"


class JsonStream:
    """Reads one JSON text front to back; every method starts where the one before stopped."""

    def __init__(self, file: BinaryIO, name: str, chunk: int = 1 << 20) -> None:
        """``name`` is what errors call the file, ``chunk`` the bytes read at a time."""
        self.name = name
        self._file, self._chunk = file, chunk
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._text, self._pos, self._eof = "", 0, False
        self._lines = 0  # line feeds before the window
        self._mark_pos, self._mark_byte = 0, 0  # a place in the window whose byte offset is known
        self._skip_byte_order_mark()

    def members(self) -> Iterator[str]:
        """The keys of the object that starts here; after each the caller takes its value, or skips it."""
        self._take("{")
        if self._peek() == "}":
            self._pos += 1
            return
        while True:
            if self._peek() != '"':
                raise self.error("expected a key in double quotes")
            key = self.value()
            self._take(":")
            yield key
            if self._take(",}") == "}":
                return

    def elements(self) -> Iterator[tuple[Any, int, int]]:
        """The elements of the list that starts here, each with its byte offset and length in the file."""
        self._take("[")
        if self._peek() == "]":
            self._pos += 1
            return
        while True:
            self._peek()
            start = self._byte()
            value = self.value()
            yield value, start, self._byte() - start
            if self._take(",]") == "]":
                return

    def value(self) -> Any:
        """The value that starts here, built in memory; a ``TooDeep`` where that is impossible."""
        self._peek()
        while True:
            try:
                value, end = decode(self._text, self._pos)
            except json.JSONDecodeError as error:
                if self._eof or not self._is_cut_short(error):
                    self._pos = error.pos
                    raise self.error(error.msg) from None
            except RecursionError:
                self.skip()
                return TooDeep()
            else:
                # A number at the window's end ("1", "1.5e-") may go on behind it.
                if end + 2 < len(self._text) or self._eof:
                    self._pos = end
                    return value
            self._read_more()

    def skip(self) -> None:
        """Pass over the value that starts here without building it, whatever its size or depth."""
        first = self._peek()
        if first == '"':
            self._skip_string()
        elif first in _CLOSER:
            self._skip_brackets()
        else:
            self.value()

    def end(self) -> None:
        """Raises unless nothing but white space is left."""
        if self._peek():
            raise self.error("more text behind the end of the JSON value")

    def starts_with(self) -> str:
        """The first character of what comes next, without taking it; empty at the end of the file."""
        return self._peek()

    def error(self, what: str) -> InputError:
        """An ``InputError`` that names the place reached so far."""
        line = self._lines + self._text.count("\n", 0, self._pos) + 1
        ended = self._eof and (self._pos >= len(self._text) or what.startswith(_UNTERMINATED))
        return InputError(
            self.name,
            f"line {line}, byte {self._byte()}",
            None,
            f"not valid JSON: {'the file ends too early, ' if ended else ''}{what}",
        )

    def _skip_brackets(self) -> None:
        open_brackets = [_CLOSER[self._text[self._pos]]]
        self._pos += 1
        while open_brackets:
            found = _BALANCED.match(self._text, self._pos)
            assert found is not None  # it matches the empty text, too
            self._pos = found.end()
            char = self._text[self._pos : self._pos + 1]
            if char == "":
                self._read_more_or_fail("a bracket is not closed")
            elif char == '"':
                self._skip_string()
            elif char in _CLOSER:
                open_brackets.append(_CLOSER[char])
                self._pos += 1
            else:
                self._take(open_brackets.pop())

    def _skip_string(self) -> None:
        self._pos += 1
        while True:
            found = _STRING_REST.match(self._text, self._pos)
            assert found is not None
            self._pos = found.end()
            if self._text[self._pos : self._pos + 1] == '"':
                self._pos += 1
                return
            self._read_more_or_fail("a text is not closed")

    def _take(self, allowed: str) -> str:
        char = self._peek()
        if not char or char not in allowed:
            raise self.error(f"expected {' or '.join(allowed)}")
        self._pos += 1
        return char

    def _peek(self) -> str:
        while True:
            found = _SPACE.match(self._text, self._pos)
            assert found is not None
            self._pos = found.end()
            if self._pos < len(self._text) or self._eof:
                return self._text[self._pos : self._pos + 1]
            self._read_more()

    def _is_cut_short(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith(_UNTERMINATED) or error.pos >= len(self._text) - _LONGEST_CUT

    def _read_more_or_fail(self, what: str) -> None:
        if self._eof:
            self._pos = len(self._text)
            raise self.error(what)
        self._read_more()

    def _read_more(self) -> None:
        """Forget what was taken and read as much again as is left: a huge value is tried few times."""
        self._byte()
        left = self._text[self._pos :]
        data = self._file.read(max(self._chunk, len(left)))
        self._eof = not data
        self._lines += self._text.count("\n", 0, self._pos)
        self._text = left + self._decoder.decode(data, final=self._eof)
        self._pos = self._mark_pos = 0

    def _byte(self) -> int:
        """The byte offset in the file of the place reached."""
        if self._text.isascii():
            self._mark_byte += self._pos - self._mark_pos
        else:
            piece = self._text[self._mark_pos : self._pos]
            self._mark_byte += len(piece.encode("utf-8", "surrogateescape"))
        self._mark_pos = self._pos
        return self._mark_byte

    def _skip_byte_order_mark(self) -> None:
        while not self._text and not self._eof:
            self._read_more()
        if self._text.startswith("\ufeff"):
            self._pos = 1


def decode(text: str, pos: int) -> tuple[Any, int]:
    """The JSON value that starts at ``pos`` of the text, and where it ends.

    Raises:
        json.JSONDecodeError: there is none.
        RecursionError: it is nested too deeply.
    """
    try:
        return _DECODER.raw_decode(text, pos)
    except json.JSONDecodeError:
        raise
    except ValueError:  # an integer longer than Python converts (sys.set_int_max_str_digits)
        return _LONG_INT_DECODER.raw_decode(text, pos)


def _any_int(digits: str) -> int | float:
    return int(digits) if len(digits) < 4000 else float(digits)


_DECODER = json.JSONDecoder()
_LONG_INT_DECODER = json.JSONDecoder(parse_int=_any_int)
