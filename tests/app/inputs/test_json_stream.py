"""The stream reads what the standard library reads, whatever its window's size, and skips what is vast."""

from __future__ import annotations

import contextlib
import io
import json
import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.errors import InputError
from app.inputs.json_stream import JsonStream, TooDeep
from tests.support.strategies import json_values


def stream(text: str | bytes, chunk: int = 1 << 20) -> JsonStream:
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return JsonStream(io.BytesIO(data), "f.json", chunk)


def take_members(reader: JsonStream, take: Callable[[JsonStream], Any] = JsonStream.value) -> None:
    for _ in reader.members():
        take(reader)


def same(a: Any, b: Any) -> bool:
    return json.dumps(a) == json.dumps(b)


@settings(max_examples=300, deadline=None)
@given(json_values, st.integers(1, 40), st.booleans(), st.sampled_from([None, 1]))
@example({"a": -math.inf, "b": ["\ud83d\ude00", "\ud83d", 1e-7]}, 1, True, None)
def test_values_are_those_of_the_standard_library(value: Any, chunk: int, ascii_: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_, indent=indent).encode("utf-8", "replace")
    reader = stream(text, chunk)
    assert same(reader.value(), json.loads(text))
    reader.end()


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(), json_values, max_size=5), st.integers(1, 40), st.data())
def test_members_come_one_by_one_and_may_be_skipped(value: dict[str, Any], chunk: int, data: Any) -> None:
    reader = stream(json.dumps(value), chunk)
    for key in reader.members():
        if data.draw(st.booleans()):
            assert same(reader.value(), value.pop(key))
        else:
            reader.skip()
            del value[key]
    reader.end()
    assert value == {}


@settings(max_examples=200, deadline=None)
@given(st.lists(json_values, max_size=5), st.integers(1, 40), st.booleans(), st.booleans())
def test_elements_say_where_they_stand(values: list[Any], chunk: int, ascii_: bool, mark: bool) -> None:
    text = json.dumps(values, ensure_ascii=ascii_, indent=1).encode("utf-8", "replace")
    text = b"\xef\xbb\xbf" * mark + text
    found = list(stream(text, chunk).elements())
    for value, (read, offset, length) in zip(json.loads(text), found, strict=True):
        assert same(value, read)
        assert same(value, json.loads(text[offset : offset + length]))


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=30) | st.text('[]{}",:\\u0d8e-1truefalsn \n', max_size=30), st.integers(1, 10))
def test_any_bytes_are_json_or_refused(data: bytes | str, chunk: int) -> None:
    for method in (JsonStream.value, JsonStream.skip, lambda s: list(s.elements())):
        reader = stream(data, chunk)
        with contextlib.suppress(InputError):
            method(reader)
            reader.end()


@pytest.mark.parametrize("text", ['{"a": 1,}', '{"a" 1}', '{"a": 1 "b": 2}', "{a: 1}", '{"a": 1', '{"a', "{", '{"a":'])
def test_a_broken_object_is_refused(text: str) -> None:
    for chunk in (1, 100):
        with pytest.raises(InputError):
            take_members(stream(text, chunk))


@pytest.mark.parametrize("text", ["[1,]", "[1 2]", "[", "[1", "[,]", "[01]", "[tru]", '["\n"]', r'["\x"]'])
def test_a_broken_list_is_refused(text: str) -> None:
    for chunk in (1, 100):
        with pytest.raises(InputError):
            list(stream(text, chunk).elements())


@pytest.mark.parametrize("text", ['{"a": [}', '{"a": [{]}}', '{"a": [1', '{"a": "x', '{"a": "x\\', '{"a": {"b": "'])
def test_brackets_and_texts_that_are_skipped_must_close(text: str) -> None:
    with pytest.raises(InputError):
        take_members(stream(text, 3), JsonStream.skip)


def test_errors_name_line_and_byte() -> None:
    reader = stream('{"é":\n [1],\n "b": [1 2]}', 4)
    with pytest.raises(InputError) as refused:
        take_members(reader)
    assert refused.value.key == "line 3, byte 22"


def test_depth_beyond_what_can_be_built_is_passed_over() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    reader = stream(f'{{"a": {deep}, "b": {deep}, "c": 1}}', 1000)
    values = []
    for key in reader.members():
        if key == "b":
            reader.skip()
        else:
            values.append(reader.value())
    assert isinstance(values[0], TooDeep)
    assert values[1] == 1


def test_integers_of_any_length_are_numbers() -> None:
    assert stream("[" + "9" * 5000 + ", 5]").value() == [math.inf, 5]


def test_bytes_that_are_not_utf_8_spoil_only_the_text_that_holds_them() -> None:
    assert stream(b'["\xff", "a"]').value() == ["\udcff", "a"]


class Endless(io.RawIOBase):
    """A file of a million list elements (or one long text) that is never in memory."""

    def __init__(self, start: bytes, middle: bytes, end: bytes, repeat: int) -> None:
        self.parts = [start] + [middle] * repeat + [end]
        self.rest = b""

    def read(self, size: int = -1) -> bytes:
        while len(self.rest) < size and self.parts:
            self.rest += b"".join(self.parts[:1000])
            del self.parts[:1000]
        data, self.rest = self.rest[:size], self.rest[size:]
        return data


@pytest.mark.parametrize(
    ("start", "middle", "end"),
    [
        (b'{"a": [[0]', b', {"b": [1, {"c": "\\"]"}], "d": "' + b"x" * 60 + b'"}', b"]}"),
        (b'{"a": "', b'\\" [{' + b"y" * 90, b'"}'),
    ],
)
def test_a_vast_value_is_skipped_in_little_memory(start: bytes, middle: bytes, end: bytes) -> None:
    reader = JsonStream(Endless(start, middle, end, 50_000), "f.json", 1 << 16)  # type: ignore[arg-type]
    tracemalloc.start()
    take_members(reader, JsonStream.skip)
    reader.end()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
