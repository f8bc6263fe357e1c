"""Runs: found by name, held to their settings, one however many producers make it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from app.database.records import PAUSED, Run
from app.database.run_rows import (
    all_runs,
    find_or_create_run,
    find_run,
    hold_run,
    runs_of_models,
    set_priority,
    set_state,
)
from app.errors import RunError
from producer.run_request import Inputs
from tests.support.runs import describe, pair, request_for, standing, store_run
from tests.support.waits import wait_for


def make_run(database: Engine, name: str = "default", **settings: Any) -> Run:
    with database.begin() as connection:
        wanted = request_for(name, **settings).as_run(Inputs(Path("a"), Path("b"), Path("/images")))
        return find_or_create_run(connection, wanted)


def begun(database: Engine) -> Run:
    """A run that has a result."""
    stored = store_run(database, [pair(0)])
    with database.begin() as connection:
        describe(connection, stored.ids[0])
    return stored.run


def test_the_same_settings_find_the_same_run(database: Engine) -> None:
    assert make_run(database).uuid == make_run(database).uuid


def test_other_settings_are_refused_with_the_difference(database: Engine) -> None:
    begun(database)
    with pytest.raises(RunError) as refusal:
        make_run(database, temperature=0.7, seed=3)
    message = str(refusal.value)
    assert "temperature: 0.1 in the run, 0.7 now" in message
    assert "seed: 0 in the run, 3 now" in message
    assert "top_k" not in message


def test_settings_of_an_older_version_mean_the_defaults_and_new_ones_are_kept_where_they_say_something(
    database: Engine,
) -> None:
    run = begun(database)
    query = text("SELECT settings FROM runs")
    with database.begin() as connection:
        kept = connection.execute(query).scalar_one()
    assert "top_p" not in kept, "a worker of the version before would not know it"
    assert (run.settings.top_p, run.settings.repetition_penalty) == (1.0, 1.0)
    assert make_run(database).uuid == run.uuid
    with pytest.raises(RunError, match=r"top_p: 1\.0 in the run, 0\.5 now"):
        make_run(database, top_p=0.5)
    other = make_run(database, "other", top_p=0.5, top_k_sampling=4, presence_penalty=1.5)
    assert (other.settings.top_p, other.settings.top_k_sampling) == (0.5, 4)
    assert (other.settings.repetition_penalty, other.settings.presence_penalty) == (1.0, 1.5)


def test_other_weights_under_the_same_configuration_are_another_model(database: Engine) -> None:
    def with_weights(digest: str) -> Run:
        wanted = request_for().as_run(Inputs(Path("a"), Path("b"), Path("/images")))
        wanted = replace(wanted, model_hash=digest, model_key=f"model-{digest}")
        with database.begin() as connection:
            return find_or_create_run(connection, wanted)

    with_weights("first")
    assert with_weights("second").model_key == "model-second", "nothing was described with the first ones"
    stored = store_run(database, [pair(0)])
    with database.begin() as connection:
        describe(connection, stored.ids[0])
    with pytest.raises(RunError, match="model_hash: 'second' in the run, 'third' now"):
        with_weights("third")


def test_a_repeat_keeps_the_runs_priority_and_state(database: Engine) -> None:
    with database.begin() as connection:
        wanted = request_for().as_run(Inputs(Path("a"), Path("b"), Path("/images")))
        assert find_or_create_run(connection, wanted, priority=7).priority == 7
        set_state(connection, find_or_create_run(connection, wanted), PAUSED)
        again = find_or_create_run(connection, replace(wanted, settings=replace(wanted.settings, seed=5)))
    assert (again.priority, again.state, again.settings.seed) == (7, PAUSED, 5)


def test_two_producers_at_once_get_one_run(database: Engine) -> None:
    with ThreadPoolExecutor(6) as threads:
        runs = list(threads.map(lambda _: make_run(database), range(6)))
    assert len({run.uuid for run in runs}) == 1


def test_a_run_without_results_may_be_made_with_other_settings(database: Engine) -> None:
    before = store_run(database, [pair(0), pair(1)]).run
    after = make_run(database, temperature=0.7, style="per-pair", model="another/model")
    assert after.settings.temperature == 0.7
    assert after.model_key != before.model_key
    assert after.uuid != before.uuid, "messages of the one before are of another time"
    with database.begin() as connection:
        assert [run.name for run in all_runs(connection)] == ["default"]
        assert standing(connection, after) == (0, 0, 0, 0)


def test_producers_with_other_settings_cannot_win_against_what_is_described(database: Engine) -> None:
    begun(database)

    def attempt(seed: int) -> str:
        try:
            return make_run(database, seed=seed).uuid
        except RunError:
            return "refused"

    with ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(attempt, range(4)))
    assert outcomes.count("refused") == 3


def test_without_a_name_the_only_run_is_meant(database: Engine) -> None:
    with database.begin() as connection, pytest.raises(RunError, match="no run yet"):
        find_run(connection, None)
    one = make_run(database, "one")
    with database.begin() as connection:
        assert find_run(connection, None).uuid == one.uuid
    make_run(database, "two")
    with database.begin() as connection:
        with pytest.raises(RunError, match="one, two"):
            find_run(connection, None)
        with pytest.raises(RunError, match=r"'three'.*one, two"):
            find_run(connection, "three")
        assert find_run(connection, "two").name == "two"


def test_a_run_is_found_by_what_messages_and_workers_know(database: Engine) -> None:
    run = make_run(database)
    other = make_run(database, "other", model="another/model")
    with database.begin() as connection:
        assert runs_of_models(connection, [run.model_key, "none-000"]) == [run]
        assert runs_of_models(connection, [other.model_key]) == [other]


def test_who_holds_a_run_is_the_only_one_that_changes_it(database: Engine) -> None:
    run = make_run(database)
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )

    def second() -> int:
        with database.begin() as connection:
            return hold_run(connection, "default").priority

    with ThreadPoolExecutor(1) as threads:
        with database.begin() as first:
            hold_run(first, None)
            found = threads.submit(second)
            if database.dialect.name == "postgresql":  # SQLite has one writer at a time anyway
                wait_for(lambda: first.execute(waiting).scalar_one() == 1, "the second one waits")
            set_priority(first, run, 7)
        assert found.result(60) == 7
