"""Database work that outlasts the database."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import pytest
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.database.connection import open_database
from tests.conftest import MakeSettings
from tests.support.runs import pair, store_run
from tests.support.waits import wait_for
from workers.retry import RetryUntilUp, ShuttingDown


def failing(*errors: Exception) -> Callable[[], str]:
    left = list(errors)

    def action() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return action


def away(kind: type[DBAPIError] = OperationalError) -> DBAPIError:
    return kind("COMMIT", {}, Exception("gone"))


def test_it_tries_until_the_database_is_back() -> None:
    durable = RetryUntilUp(Event())
    durable._away_until -= 1000  # a process that has run for long
    assert durable.healthy_for() > 900
    assert durable(failing(away(), PoolTimeout("no connection"), away(ProgrammingError))) == "done"
    assert durable.healthy_for() < 900


@pytest.mark.parametrize("kind", [IntegrityError, DataError])
def test_what_the_database_will_never_take_is_not_tried_again(kind: type[DBAPIError]) -> None:
    with pytest.raises(kind):
        RetryUntilUp(Event())(failing(away(kind)))


def test_other_errors_are_nobodys_business_here() -> None:
    with pytest.raises(KeyError):
        RetryUntilUp(Event())(failing(KeyError("name")))


def test_a_worker_that_ends_waits_no_longer() -> None:
    stopping = Event()
    stopping.set()
    with pytest.raises(ShuttingDown, match="gone"):
        RetryUntilUp(stopping)(failing(away(), away()))


def test_a_locked_sqlite_is_waited_for(tmp_path: Path, make_settings: MakeSettings) -> None:
    engine = open_database(make_settings(database_url=f"sqlite:///{tmp_path}/farm.sqlite"))
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=1")
    lock = sqlite3.connect(tmp_path / "farm.sqlite", isolation_level=None, check_same_thread=False)
    lock.execute("BEGIN IMMEDIATE")
    done: list[object] = []
    durable = RetryUntilUp(Event())
    met = Event()
    durable.note_away = met.set  # type: ignore[method-assign]
    worker = Thread(target=lambda: done.append(durable(lambda: store_run(engine, [pair(0)]).ids)))
    worker.start()
    wait_for(met.is_set, "the lock was met")
    assert not done
    lock.execute("COMMIT")
    worker.join(60)
    assert done == [[1]]
    engine.dispose()
