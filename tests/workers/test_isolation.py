"""The gate: many together, or one alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from tests.support.waits import wait_for
from workers.isolation import SharedExclusiveLock


class Visitor:
    """Holds the gate in a thread of its own until told to leave."""

    def __init__(self, gate: SharedExclusiveLock, threads: ThreadPoolExecutor, *, alone: bool) -> None:
        self.inside, self._leave = Event(), Event()
        self._future = threads.submit(self._visit, gate, alone)

    def _visit(self, gate: SharedExclusiveLock, alone: bool) -> None:
        with gate.enter(alone=alone):
            self.inside.set()
            self._leave.wait(30)

    def leave(self) -> None:
        """Leave, and wait until that is done."""
        self._leave.set()
        self._future.result(30)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(6) as threads:
        yield threads


def test_many_are_together(threads: ThreadPoolExecutor) -> None:
    gate = SharedExclusiveLock()
    visitors = [Visitor(gate, threads, alone=False) for _ in range(3)]
    assert all(visitor.inside.wait(30) for visitor in visitors)
    for visitor in visitors:
        visitor.leave()


def test_alone_waits_for_all_and_keeps_all_out(threads: ThreadPoolExecutor) -> None:
    gate = SharedExclusiveLock()
    early = Visitor(gate, threads, alone=False)
    assert early.inside.wait(30)
    alone = Visitor(gate, threads, alone=True)
    wait_for(lambda: gate._waiting == 1, "somebody waits to be alone")
    late = Visitor(gate, threads, alone=False)
    other = Visitor(gate, threads, alone=True)
    wait_for(lambda: gate._waiting == 2, "another waits to be alone")
    assert not any(visitor.inside.is_set() for visitor in (alone, late, other))
    early.leave()
    wait_for(lambda: alone.inside.is_set() or other.inside.is_set(), "one is alone")
    first, second = (alone, other) if alone.inside.is_set() else (other, alone)
    assert not any(visitor.inside.is_set() for visitor in (second, late))
    first.leave()
    assert second.inside.wait(30)  # who waits to be alone goes before those who came together
    assert not late.inside.is_set()
    second.leave()
    assert late.inside.wait(30)
    late.leave()


@pytest.mark.parametrize("alone", [False, True])
def test_an_error_inside_opens_the_gate(threads: ThreadPoolExecutor, alone: bool) -> None:
    gate = SharedExclusiveLock()
    with pytest.raises(ValueError, match="inside"), gate.enter(alone=alone):
        raise ValueError("inside")
    after = Visitor(gate, threads, alone=True)
    assert after.inside.wait(30)
    after.leave()
