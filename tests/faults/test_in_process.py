"""Faults that need no killed process: a full disk, a stalled consumer, a broker that died, a run of another model."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from app.database.connection import open_database
from app.queue.celery_app import embedded_broker, ensure_broker, make_app
from app.queue.publisher import Broker
from app.queue.shards import Served
from app.settings import Settings, load_settings
from producer.enqueue import prepare
from producer.progress import Progress
from producer.run_request import Inputs
from tests.support.drawn_inputs import draw_inputs
from tests.support.runs import request_for
from tests.support.waits import wait_for
from workers import maintenance
from workers.engine.api import Completion, Request
from workers.identity import WorkerIdentity
from workers.launcher import Launcher
from workers.maintenance import Maintenance
from workers.pair_runner import PairRunner


class CountingEngine:
    """Says the same to everything, at a length that needs new pages of the database."""

    def __init__(self) -> None:
        self.generated = 0

    def submit(self, requests: Sequence[Request]) -> list[Future[Completion]]:
        futures: list[Future[Completion]] = [Future() for _ in requests]
        for future in futures:
            self.generated += 1
            future.set_result(Completion("text" * 50_000, "stop", 1, 1))
        return futures

    def stats(self) -> dict[str, float]:
        return {}

    def close(self) -> None: ...


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(state_dir=tmp_path / "state")


@pytest.fixture
def database(settings: Settings) -> Engine:
    return open_database(settings)


def stored_run(settings: Settings, database: Engine, folder: Path) -> tuple[str, int]:
    """A run of twelve pairs, six of them over a good image; gives its uuid and model key's message."""
    drawn = draw_inputs(folder, 12, seed=3)
    request = request_for("r", model="small", top_k=3, temperature=0.0)
    inputs = Inputs(drawn.stage1, drawn.images, drawn.images.parent)
    prepared = prepare(database, request, inputs, Progress())
    with database.connect() as connection:
        uuid, first = connection.execute(text("SELECT r.uuid, min(p.id) FROM runs r, pairs p GROUP BY r.uuid")).one()
    assert prepared.stored.pairs == 12
    return uuid, first


def identity(database: Engine) -> WorkerIdentity:
    """A worker whose model is that of the runs."""
    with database.connect() as connection:
        keys = connection.execute(text("SELECT model_key FROM runs")).scalars()
        hashes = connection.execute(text("SELECT model_hash FROM runs")).scalars()
        return WorkerIdentity("w", tuple(keys), next(iter(hashes)))


def count(database: Engine, table: str) -> int:
    with closing(sqlite3.connect(str(database.url.database))) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


@pytest.mark.parametrize("trouble", ["max_page_count=1", "query_only=1"], ids=["disk full", "read-only"])
def test_a_result_waits_for_a_database_that_does_not_take_it(
    settings: Settings, database: Engine, tmp_path: Path, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    message = stored_run(settings, database, tmp_path / "in")
    engine = CountingEngine()
    runner = PairRunner(settings, database, engine, identity(database))
    in_trouble = [trouble]

    @event.listens_for(database, "checkout")
    def _limit(connection: Any, *_: object) -> None:
        for pragma in in_trouble if engine.generated else ():
            connection.execute(f"PRAGMA {pragma}")

    thread = Thread(target=runner.run, args=message)
    thread.start()
    wait_for(lambda: "retrying, nothing is lost" in caplog.text, "it says so")
    assert thread.is_alive(), "the message would be acknowledged without its row"
    assert count(database, "results") == 0
    in_trouble.clear()
    database.dispose()  # what was limited is a connection's own
    thread.join(30)
    assert count(database, "results") == 1
    generated = engine.generated
    runner.run(*message)
    assert engine.generated == generated


def test_a_message_of_another_models_run_is_dropped(
    settings: Settings, database: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    message = stored_run(settings, database, tmp_path / "in")
    engine = CountingEngine()
    PairRunner(settings, database, engine, WorkerIdentity("w", ("another-model",), "its hash")).run(*message)
    assert (engine.generated, count(database, "results"), count(database, "claims")) == (0, 0, 0)
    assert "stale message" in caplog.text


class Work:
    """A worker's pairs, as the housekeeper sees them."""

    def __init__(self) -> None:
        self.messages = 0

    def held(self) -> list[int]:
        return []

    def in_flight(self) -> int:
        return self.messages

    def runs(self) -> set[int]:
        return set()

    def abandon(self, _run_id: int) -> int:
        return 0

    def may_take_over(self) -> bool:
        return True

    def note_database_away(self) -> None: ...


@pytest.fixture
def waiting(settings: Settings, database: Engine, tmp_path: Path) -> Iterator[Broker]:
    """A broker, and twelve pairs that want to be published."""
    stored_run(settings, database, tmp_path / "in")
    ensure_broker(settings)
    broker = Broker(make_app(settings))
    yield broker
    broker.close()
    embedded_broker(settings).stop()


def housekeeper(settings: Settings, database: Engine, broker: Broker, work: Work, ended: list[bool]) -> Maintenance:
    """One that has published what was due, and whose consumer has started."""
    keeper = Maintenance(
        settings, database, broker, work, Served(), identity(database), when_stalled=lambda: ended.append(True)
    )
    assert keeper.sweep() == 12
    keeper.consuming()
    return keeper


def test_a_worker_that_hears_nothing_while_messages_wait_ends(
    settings: Settings, database: Engine, waiting: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[bool] = []
    work = Work()
    keeper = housekeeper(settings, database, waiting, work, ended)
    monkeypatch.setattr(maintenance, "_STALLED_AFTER_S", 0.0)
    monkeypatch.setattr(maintenance, "_STALLED_AFTER_SWEEPS", 0.0)
    work.messages = 1
    keeper.sweep()
    assert not ended
    work.messages = 0
    keeper.sweep()
    assert ended


def test_a_consumer_that_does_not_run_is_not_stalled(
    settings: Settings, database: Engine, waiting: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[bool] = []
    monkeypatch.setattr(maintenance, "_STALLED_AFTER_S", 0.0)
    monkeypatch.setattr(maintenance, "_STALLED_AFTER_SWEEPS", 0.0)
    keeper = housekeeper(settings, database, waiting, Work(), ended)
    keeper.consumer_stopped()  # Redis refuses what it needs, though it tells how much waits
    keeper.sweep()
    keeper.sweep()
    assert not ended
    keeper.consuming()
    keeper.sweep()
    assert ended


def test_a_worker_that_sweeps_seldom_is_not_stalled_between_two_sweeps(
    settings: Settings, database: Engine, waiting: Broker
) -> None:
    ended: list[bool] = []
    seldom = settings.model_copy(update={"sweep_s": 30.0})
    keeper = housekeeper(seldom, database, waiting, Work(), ended)
    assert keeper._heard is not None
    keeper._heard -= 70  # it took pairs since the sweep before the last one, and waits for the next just now
    keeper.sweep()
    assert not ended
    keeper._heard -= 120
    keeper.sweep()
    assert ended


def test_the_launcher_starts_an_embedded_broker_that_died(settings: Settings, database: Engine) -> None:
    broker = embedded_broker(settings)
    try:
        Launcher(settings, [], database).tend()
        assert broker.answers()
    finally:
        broker.stop()
