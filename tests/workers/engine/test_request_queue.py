"""Nobody waits for an engine that has ended."""

from __future__ import annotations

import threading

import pytest

from tests.support.engine_cases import image, request
from workers.engine.api import DeviceLost, EngineStopped
from workers.engine.request_queue import RequestQueue


def test_when_the_engines_thread_dies_nobody_waits() -> None:
    queue = RequestQueue()
    go = threading.Event()

    def loop() -> None:
        go.wait(10)
        raise DeviceLost("gone")

    queue.start(loop, "dying")
    early = queue.submit([request(image())])
    go.set()
    with pytest.raises(DeviceLost):
        early[0].result(10)
    with pytest.raises(DeviceLost):
        queue.submit([request(image())])[0].result(10)


def test_what_is_cancelled_while_it_waits_is_never_started() -> None:
    queue = RequestQueue()
    first, cancelled, last = queue.submit([request(image(number)) for number in range(3)])
    assert cancelled.cancel()
    assert [pending.future for pending in queue.take(None, wait=False)] == [first, last]


def test_a_closed_queue_refuses() -> None:
    queue = RequestQueue()
    queue.start(lambda: None, "ending")
    queue.close()
    with pytest.raises(EngineStopped):
        queue.submit([request(image())])[0].result(10)
