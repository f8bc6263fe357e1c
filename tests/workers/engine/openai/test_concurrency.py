"""How many requests may be at the server at once."""

from __future__ import annotations

import threading

import pytest

from workers.engine.openai.concurrency import AdaptiveLimit, Closed


def send(limit: AdaptiveLimit, count: int) -> None:
    """So many exchanges one after another, all of which succeed."""
    for _ in range(count):
        limit.begin()
        with limit.attempt():
            pass
        limit.succeeded()
        limit.end()


def test_it_doubles_each_round_while_all_goes_well_and_stops_at_the_most() -> None:
    limit = AdaptiveLimit(most=20, first=4)
    send(limit, 4)
    assert limit.limit == 8
    send(limit, 8)
    assert limit.limit == 16
    send(limit, 100)
    assert limit.limit == 20


def test_congestion_halves_it_once_for_all_that_was_sent_before() -> None:
    limit = AdaptiveLimit(most=64, first=32)
    with limit.attempt() as one, limit.attempt() as other:
        pass
    limit.congested(one)
    limit.congested(other)
    assert limit.limit == 16
    with limit.attempt() as later:
        pass
    limit.congested(later)
    assert limit.limit == 8


def test_after_congestion_it_grows_by_one_a_round() -> None:
    limit = AdaptiveLimit(most=64, first=16)
    with limit.attempt() as mark:
        pass
    limit.congested(mark)
    send(limit, 9)
    assert limit.limit == 9


def test_it_never_falls_below_one() -> None:
    limit = AdaptiveLimit(most=4)
    for _ in range(10):
        with limit.attempt() as mark:
            pass
        limit.congested(mark)
    assert limit.limit == 1


def test_nothing_is_sent_during_a_hold_and_everything_after(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("workers.engine.openai.concurrency.time.monotonic", lambda: clock[0])
    limit = AdaptiveLimit(most=4)
    with limit.attempt() as mark:
        pass
    limit.congested(mark, hold_s=60.0)
    sent = threading.Event()

    def attempt() -> None:
        with limit.attempt():
            sent.set()

    thread = threading.Thread(target=attempt)
    thread.start()
    assert not sent.wait(0.05)
    clock[0] = 161.0
    limit.succeeded()  # wakes who waits
    assert sent.wait(30)
    thread.join()


def test_no_more_are_sent_than_the_limit() -> None:
    limit = AdaptiveLimit(most=2, first=2)
    free, inside, most = threading.Event(), [0], [0]
    lock = threading.Lock()

    def attempt() -> None:
        with limit.attempt():
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            free.wait(0.01)
            with lock:
                inside[0] -= 1

    threads = [threading.Thread(target=attempt) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most[0] == 2


def test_closing_lets_go_of_everybody() -> None:
    limit = AdaptiveLimit(most=1, first=1)
    limit.begin()
    ended: list[type[Exception]] = []

    def wait() -> None:
        try:
            limit.begin()
        except Closed:
            ended.append(Closed)

    thread = threading.Thread(target=wait)
    thread.start()
    limit.close()
    thread.join(30)
    assert ended == [Closed]
    with pytest.raises(Closed), limit.attempt():
        pass
