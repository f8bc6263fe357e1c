"""How much of the database a pair costs: what is committed together is counted once for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from tests.support.desk import Desk
from tests.support.runs import write_inputs

IN_FLIGHT = 16


@contextmanager
def counted(database: Engine) -> Iterator[Counter[str]]:
    """Statements and transactions while the block runs."""
    found: Counter[str] = Counter()

    def statement(_connection: Any, _cursor: Any, text: str, *_: Any) -> None:
        found["transactions" if text.startswith("BEGIN") else "statements"] += 1

    def begin(_connection: Any) -> None:
        if database.dialect.name == "postgresql":
            found["transactions"] += 1

    event.listen(database, "before_cursor_execute", statement)
    event.listen(database, "begin", begin)
    yield found
    event.remove(database, "before_cursor_execute", statement)
    event.remove(database, "begin", begin)


@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_a_pair_costs_at_most_three_statements_and_one_transaction(
    desk: Desk, tmp_path: Path, temperature: float
) -> None:
    desk.enqueue(write_inputs(tmp_path / "in", images=16, pairs=16), temperature=temperature)
    run, ids = desk.run(), desk.pending()
    with desk.worker() as runner, ThreadPoolExecutor(IN_FLIGHT) as threads, counted(desk.database) as found:
        list(threads.map(lambda pair_id: runner.run(run.uuid, pair_id), ids))
    assert desk.standing().done == len(ids)
    assert found["statements"] / len(ids) <= 3, found
    assert found["transactions"] / len(ids) <= 1, found
