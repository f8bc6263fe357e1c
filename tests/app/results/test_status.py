"""The ``results`` command: how a run stands, what failed, exit statuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine

from app.database.records import QueuedPair
from app.queue.celery_app import make_app
from app.queue.embedded import EmbeddedBroker
from app.queue.publisher import Broker, Publisher
from app.results.cli import main
from tests.conftest import MakeSettings
from tests.support.runs import StoredRun, describe, fail, pair, store_run

Results = Callable[..., Result]


@pytest.fixture
def results(database_url: str, make_settings: MakeSettings) -> Results:
    """Runs ``results`` with this test's database and state folder."""

    def call(*arguments: str) -> Result:
        environment = {"DATABASE_URL": database_url, "FARM_STATE_DIR": str(make_settings().state_dir)}
        return CliRunner().invoke(main, arguments, env=environment)

    return call


@pytest.fixture
def stored(database: Engine) -> StoredRun:
    """Four pairs: two described, one failed, one missing."""
    stored = store_run(database, [pair(number) for number in range(4)])
    with database.begin() as connection:
        for pair_id in stored.ids[:2]:
            describe(connection, pair_id, seconds=3.0)
        fail(connection, stored.ids[2], "image missing", "2.jpg is not there")
    return stored


def test_status_says_how_the_run_stands(results: Results, stored: StoredRun, broker: EmbeddedBroker,
                                        make_settings: MakeSettings) -> None:  # fmt: skip
    shards = make_settings().queue_shards
    Publisher(Broker(make_app(make_settings())), stored.run, shards).publish([QueuedPair(stored.ids[3], "1")])
    status = json.loads(results("status", "--json").output)
    wanted = {"run": "default", "expected": 4, "done": 2, "failed": 1, "claimed": 0, "queued": 1, "pending": 1}
    assert {name: status[name] for name in wanted} == wanted
    assert status["failures"] == {"image missing": 1}
    assert status["rate"] > 0
    assert status["eta"] > 0
    assert status["dropped"] == {}


def test_status_does_without_a_broker(results: Results, stored: StoredRun) -> None:
    found = results("status", "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.output)["queued"] is None


def test_status_for_people_says_the_same(results: Results, stored: StoredRun) -> None:
    lines = [line.split() for line in results("status").output.splitlines()]
    assert ["pending", "1"] in lines
    assert ["failed:", "image", "missing", "1"] in lines


def test_failures_are_listed_with_their_reason(results: Results, stored: StoredRun) -> None:
    (line,) = results("failures", "--json").output.splitlines()
    failure = json.loads(line)
    assert (failure["subject"], failure["reason"], failure["detail"]) == (
        "subject 2", "image missing", "2.jpg is not there"
    )  # fmt: skip
    assert "image missing" in results("failures").output


@pytest.mark.parametrize(("flags", "code"), [((), 0), (("--strict",), 1)])
def test_a_strict_export_fails_where_pairs_lack(
    results: Results, stored: StoredRun, tmp_path: Path, flags: tuple[str, ...], code: int
) -> None:
    found = results("export", "--out", str(tmp_path / "out.json"), *flags)
    assert found.exit_code == code
    assert "1 pairs are pending and 1 failed" in found.output
    assert len(json.loads((tmp_path / "out.json").read_text())["results"]) == 2


def test_a_strict_export_of_everything_succeeds(results: Results, database: Engine, tmp_path: Path) -> None:
    stored = store_run(database, [pair(0)])
    with database.begin() as connection:
        describe(connection, stored.ids[0], seconds=3.0)
    assert results("export", "--out", str(tmp_path / "out.json"), "--strict").exit_code == 0


@pytest.mark.usefixtures("database")
def test_an_error_that_a_user_can_mend_is_one_line(results: Results) -> None:
    found = results("status")
    assert (found.exit_code, found.output) == (1, "Error: there is no run yet: `producer enqueue` makes one\n")


def test_a_database_that_is_away_is_one_line(tmp_path: Path) -> None:
    url = "postgresql://me:hunter2@127.0.0.1:1/none"
    found = CliRunner().invoke(main, ["status"], env={"DATABASE_URL": url, "FARM_STATE_DIR": str(tmp_path)})
    assert found.exit_code == 1
    assert found.output.startswith("Error: the database does not take this")
    assert "hunter2" not in found.output


def test_what_an_enqueue_copied_is_no_rate_and_promises_no_end(results: Results, database: Engine) -> None:
    stored = store_run(database, [pair(number) for number in range(3)])
    with database.begin() as connection:
        describe(connection, stored.ids[0], attempts=0, seconds=0.0)
    status = json.loads(results("status", "--json").stdout)
    assert (status["done"], status["rate"], status["eta"]) == (1, 0.0, None)
