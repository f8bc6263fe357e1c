"""Elements of a queue that are no task message: each part of a good one, in every form that it should not have."""

from __future__ import annotations

import copy
import gzip
import json
import zlib
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 2**80, "", "x", "\x00", "é\ud800", "9" * 300, [], [1], [[]], {}, {"a": 1}, {"task": []},
)  # fmt: skip
_PLACES = (
    ("body",), ("content-type",), ("content-encoding",), ("headers",), ("properties",),
    ("headers", "task"), ("headers", "id"), ("properties", "delivery_tag"), ("properties", "body_encoding"),
)  # fmt: skip
_UNUSED = (
    ("headers", "lang"), ("headers", "eta"), ("headers", "expires"), ("headers", "timelimit"), ("headers", "retries"),
    ("headers", "shadow"), ("headers", "group"), ("headers", "root_id"), ("headers", "stamps"), ("headers", "argsrepr"),
    ("headers", "stamped_headers"), ("headers", "origin"), ("headers", "ignore_result"), ("headers", "redelivered"),
    ("properties", "delivery_info"), ("properties", "priority"), ("properties", "reply_to"),
    ("properties", "correlation_id"), ("properties", "delivery_mode"), ("redelivered",),
)  # fmt: skip


def odd_messages(good: dict[str, Any]) -> Iterator[bytes]:
    """Elements that are no message of the farm; ``good`` is one."""
    yield from _no_messages(json.dumps(good).encode())
    for place in _PLACES:
        yield _encoded(_without(good, place))
        for value in ODD_VALUES:
            if not _is_good(place, value):
                yield _encoded(_with(good, place, value))
    for encoding in ("gzip", "application/x-gzip", "bzip2", "zlib", "nonsense", 5, ["gzip"]):
        yield _encoded(_with(good, ("headers", "compression"), encoding))
    for content in ("application/x-python-serialize", "application/x-yaml", "application/data", "text/plain"):
        yield _encoded(_with(good, ("content-type",), content))
    for encoding in ("binary", "utf-16", "latin-1", "nonsense"):
        yield _encoded(_with(good, ("content-encoding",), encoding))
    for encoding in ("utf-8", "hex", "BASE64 "):
        yield _encoded(_with(good, ("properties", "body_encoding"), encoding))
    for task in ("other.task", "celery.chord", "a" * 10_000, "workers.process.describe_pair "):
        yield _encoded(_with(good, ("headers", "task"), task))
    yield from (_with_body(good, body) for body in _bodies())


def readable_messages(good: dict[str, Any]) -> Iterator[bytes]:
    """Messages with odd values where none is looked for: they name their pair all the same."""
    for place in _UNUSED:
        for value in ODD_VALUES:
            yield _encoded(_with(good, place, value))


def _no_messages(good: bytes) -> Iterator[bytes]:
    yield from (
        b"", b" ", b"\x00", b"\xff\xfe\x00", b"garbage", b"null", b"true", b"0", b"NaN", b"[]", b"{}", b'""', b"[1, 2",
        b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5_000, b"9" * 70_000, b"x" * 5_000_000, b"\xef\xbb\xbf" + good,
        good[:-1], good + b"x", good * 2, b"[" + good + b"]", json.dumps(good.decode()).encode(),
        good.decode().encode("utf-16"), gzip.compress(good), zlib.compress(good), b64encode(good),
        b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00\x8c\x01a\x94.",
    )  # fmt: skip


def _bodies() -> Iterator[bytes]:
    run = "00000000-0000-0000-0000-000000000000"
    embed: dict[str, Any] = {}
    odd_keywords: tuple[Any, ...] = (None, [], "x", {"run_uuid": run})
    arguments: tuple[Any, ...] = (
        *ODD_VALUES, [run], [run, "1"], [run, 1.0], [run, True], [run, 0], [run, -1], [run, 2**70], [run, 1, 1],
        [1, run], [run.upper() + "X", 1], [[run], 1], [run, [1]], [None, None], ["a\x00", 1], {"0": run},
    )  # fmt: skip
    for each in arguments:
        yield json.dumps([each, {}, embed]).encode()
    for keywords in odd_keywords:
        yield json.dumps([[run, 1], keywords, embed]).encode()
    for body in ([[run, 1]], [[run, 1], {}], [[run, 1], {}, embed, 1], {"args": 1}):
        yield json.dumps(body).encode()
    yield from (b"", b"[", b"\xff", b"[" * 40_000, b'{"args": [], "kwargs": {}}', b"9" * 5_000)


def _with_body(good: dict[str, Any], body: bytes) -> bytes:
    return _encoded(good | {"body": b64encode(body).decode()})


def _encoded(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode()


def _with(good: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(good)
    inside = changed
    for name in place[:-1]:
        inside = inside[name]
    inside[place[-1]] = value
    return changed


def _without(good: dict[str, Any], place: tuple[str, ...]) -> dict[str, Any]:
    changed = _with(good, place, None)
    inside = changed
    for name in place[:-1]:
        inside = inside[name]
    del inside[place[-1]]
    return changed


def _is_good(place: tuple[str, ...], value: Any) -> bool:
    """Any short name is one."""
    return place[-1] in ("id", "delivery_tag") and value == "x"
