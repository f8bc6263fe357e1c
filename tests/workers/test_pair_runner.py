"""One pair's road through a worker: claim, describe, write; and every way in which it may end otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import Engine, select
from sqlalchemy.exc import OperationalError

from app.database.claim_rows import begin_quarantined, claim_pair, record_crash, release_claims
from app.database.connection import reading
from app.database.result_rows import failed_pairs
from app.database.schema import claims, results
from app.model_identity import identify_model
from tests.conftest import MakeSettings
from tests.support.fake_engine import FakeEngine, echo, text_of
from tests.support.runs import StoredRun, claimant, pair, source_of, store_run
from tests.support.waits import wait_for
from workers import committer as committer_module
from workers.engine.api import (
    Completion,
    DeviceLost,
    EngineStopped,
    ImageUnreadable,
    LogitsNotFinite,
    PromptTooLong,
    Request,
    SamplingUnknown,
)
from workers.identity import WorkerIdentity
from workers.model_watch import HOPELESS_AFTER, ModelHopeless
from workers.pair_runner import PairRunner, Requeue

Start = Callable[..., PairRunner]


@pytest.fixture
def stored(database: Engine, tmp_path: Path) -> StoredRun:
    """Four pairs of one image that is there."""
    Image.new("RGB", (64, 48)).save(tmp_path / "1.jpg")
    return store_run(database, [pair(number) for number in range(4)], source=source_of(root=tmp_path))


@pytest.fixture
def start(database: Engine, make_settings: MakeSettings) -> Iterator[Start]:
    """Makes runners; each is a worker process of its own as far as the database can tell."""

    def make(engine: FakeEngine, worker: str = "a", **settings: Any) -> PairRunner:
        identity = WorkerIdentity(worker, (identify_model("some/model").key,), "the model's hash", {"engine": "fake"})
        runners.append(PairRunner(make_settings(**settings), database, engine, identity))
        return runners[-1]

    runners: list[PairRunner] = []
    yield make
    for runner in runners:
        runner.end()
        runner.close()


def failures(database: Engine, stored: StoredRun) -> list[dict[str, Any]]:
    with reading(database) as connection:
        return failed_pairs(connection, stored.run, 10)


def rows(database: Engine) -> list[Any]:
    with reading(database) as connection:
        return list(connection.execute(select(results).order_by(results.c.pair_id)))


def test_a_pair_gets_its_row_and_gives_back_its_claim(database: Engine, stored: StoredRun, start: Start) -> None:
    engine = FakeEngine()
    start(engine).run(stored.run.uuid, stored.ids[0])
    (row,) = rows(database)
    assert [("is roughly on" in one["text"], one["finish_reason"], one["tokens"]) for one in row.descriptions] == [
        (True, "stop", 3),
        (False, "stop", 3),
    ]
    with reading(database) as connection:
        assert connection.execute(select(claims)).all() == []


def test_a_pair_that_has_its_row_is_skipped_before_any_generation(stored: StoredRun, start: Start) -> None:
    engine = FakeEngine()
    runner = start(engine)
    for _ in range(2):
        runner.run(stored.run.uuid, stored.ids[0])
    assert set(engine.asked.values()) == {1}


def test_a_second_delivery_joins_the_first(database: Engine, stored: StoredRun, start: Start) -> None:
    engine = FakeEngine()
    engine.free.clear()
    runner = start(engine)
    with ThreadPoolExecutor(3) as threads:
        running = [threads.submit(runner.run, stored.run.uuid, stored.ids[0]) for _ in range(3)]
        wait_for(lambda: engine.asked, "the first is at work")
        assert not any(future.done() for future in running)
        engine.free.set()
        ended = [future.result(30) for future in running]
        assert sorted(each.done for each in ended) == [False, False, True], "one did it, two found it done"
    assert set(engine.asked.values()) == {1}
    assert [row.attempts for row in rows(database)] == [1]


def test_a_pair_in_other_hands_and_one_of_another_time_are_left(
    database: Engine, stored: StoredRun, start: Start
) -> None:
    engine = FakeEngine()
    claim_pair(database, (stored.run.uuid, stored.ids[0]), claimant("b"))
    runner = start(engine)
    runner.run(stored.run.uuid, stored.ids[0])
    runner.run("gone", stored.ids[1])
    runner.run(stored.run.uuid, 10**9)
    assert (rows(database), engine.asked) == ([], {})


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PromptTooLong("9 tokens"), "prompt too long"),
        (ImageUnreadable("too thin"), "image unreadable"),
        (SamplingUnknown("no top_k here"), "sampling not supported"),
        (LogitsNotFinite("of token 3"), "model gives no numbers"),
        (RuntimeError("no kernel"), "model error"),
    ],
)
def test_what_an_engine_cannot_do_is_a_failure_with_its_reason(
    database: Engine, stored: StoredRun, start: Start, error: Exception, reason: str
) -> None:
    def refuse(request: Request) -> Completion:
        raise error

    engine = FakeEngine(refuse)
    start(engine, max_attempts=3).run(stored.run.uuid, stored.ids[0])
    (failure,) = failures(database, stored)
    assert failure["reason"] == reason
    assert str(error) in failure["detail"]
    assert set(engine.asked.values()) == {3 if reason == "model error" else 1}


def noisy(*seldom: str) -> FakeEngine:
    """An engine whose model gives no numbers, but for prompts with one of these words."""

    def answer(request: Request) -> Completion:
        if any(word in text_of(request) for word in seldom):
            return echo(request)
        raise LogitsNotFinite("NaN")

    return FakeEngine(answer)


def test_a_worker_whose_every_text_lacks_numbers_stops(database: Engine, stored: StoredRun, start: Start) -> None:
    runner = start(noisy())
    for pair_id in stored.ids[: HOPELESS_AFTER - 1]:
        runner.run(stored.run.uuid, pair_id)
    with pytest.raises(ModelHopeless):
        runner.run(stored.run.uuid, stored.ids[HOPELESS_AFTER - 1])
    assert {failure["reason"] for failure in failures(database, stored)} == {"model gives no numbers"}


def test_one_text_among_them_tells_that_the_model_has_numbers(
    database: Engine, stored: StoredRun, start: Start
) -> None:
    runner = start(noisy("roughly above object 0"))  # the second text of the first pair, which fails all the same
    for pair_id in stored.ids:
        runner.run(stored.run.uuid, pair_id)
    assert len(failures(database, stored)) == len(stored.ids)


def test_a_missing_image_is_a_failure_with_its_reason(
    database: Engine, stored: StoredRun, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "1.jpg").rename(tmp_path / "another.jpg")  # the folder is there, and it is not empty
    engine = FakeEngine()
    start(engine).run(stored.run.uuid, stored.ids[0])
    (failure,) = failures(database, stored)
    assert (failure["reason"], engine.asked) == ("image missing", {})


def test_only_what_failed_is_asked_for_again(database: Engine, stored: StoredRun, start: Start) -> None:
    broken = {"is roughly on": 2}

    def sometimes(request: Request) -> Completion:
        for part in broken:
            if part in text_of(request) and broken[part]:
                broken[part] -= 1
                raise RuntimeError("for the moment")
        return echo(request)

    engine = FakeEngine(sometimes)
    start(engine).run(stored.run.uuid, stored.ids[0])
    assert sorted(engine.asked.values()) == [1, 3]
    assert len(rows(database)) == 1


def test_stopping_hands_back_what_runs_and_what_comes(database: Engine, stored: StoredRun, start: Start) -> None:
    engine = FakeEngine()
    engine.free.clear()
    runner = start(engine)
    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(runner.run, stored.run.uuid, stored.ids[0])
        wait_for(lambda: engine.asked, "it is at work")
        runner.stop_taking()
        with pytest.raises(Requeue):
            runner.run(stored.run.uuid, stored.ids[1])
        assert runner.in_flight() == 1
        runner.end()
        with pytest.raises(Requeue):
            running.result(30)
    with reading(database) as connection:
        (claim,) = connection.execute(select(claims))
    assert (claim.worker, claim.crash_count, claim.lost) == ("", 0, 0)
    start(FakeEngine(), "b").run(stored.run.uuid, stored.ids[0])
    assert len(rows(database)) == 1


def test_an_engine_that_dies_by_itself_ends_the_process(stored: StoredRun, start: Start) -> None:
    def dead(request: Request) -> Completion:
        raise EngineStopped("the engine died")

    with pytest.raises(DeviceLost):
        start(FakeEngine(dead)).run(stored.run.uuid, stored.ids[0])


def test_a_pair_that_killed_its_workers_fails_and_is_not_run(database: Engine, stored: StoredRun, start: Start) -> None:
    for worker in ("first", "second", "third", "fourth"):
        claim_pair(database, (stored.run.uuid, stored.ids[0]), claimant(worker))
        begin_quarantined(database, worker, stored.ids[0])
        record_crash(database, worker, "its worker was ended by SIGSEGV")
    engine = FakeEngine()
    start(engine).run(stored.run.uuid, stored.ids[0])
    (failure,) = failures(database, stored)
    assert (failure["reason"], failure["attempts"], engine.asked) == ("kills its worker", 4, {})
    assert "SIGSEGV" in failure["detail"]


def test_suspects_run_one_by_one(database: Engine, stored: StoredRun, start: Start) -> None:
    for pair_id in stored.ids:
        claim_pair(database, (stored.run.uuid, pair_id), claimant("crashed"))
    record_crash(database, "crashed", "SIGSEGV")
    engine = FakeEngine()
    runner = start(engine)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda pair_id: runner.run(stored.run.uuid, pair_id), stored.ids))
    assert len(rows(database)) == 4
    assert set(engine.together) == {1}


def test_pairs_wait_out_a_database_that_is_away_and_are_described_once(
    database: Engine, stored: StoredRun, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = {"write_outcomes": 3, "claim_pairs": 2}

    def flaky(name: str) -> Callable[..., Any]:
        real = getattr(committer_module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if away[name]:
                away[name] -= 1
                raise OperationalError("COMMIT", {}, Exception("the server is gone"))
            return real(*arguments, **options)

        return call

    for name in away:
        monkeypatch.setattr(committer_module, name, flaky(name))
    engine = FakeEngine()
    start(engine).run(stored.run.uuid, stored.ids[0])
    assert len(rows(database)) == 1
    assert set(engine.asked.values()) == {1}


def test_a_result_that_came_meanwhile_stays(database: Engine, stored: StoredRun, start: Start) -> None:
    slow, quick = FakeEngine(), FakeEngine(lambda request: replace(echo(request), text="quick"))
    slow.free.clear()
    runner = start(slow)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(runner.run, stored.run.uuid, stored.ids[0])
        wait_for(lambda: slow.asked, "it is at work")
        release_claims(database, "a")
        start(quick, "b").run(stored.run.uuid, stored.ids[0])
        slow.free.set()
        running.result(30)
    (row,) = rows(database)
    assert {one["text"] for one in row.descriptions} == {"quick"}
