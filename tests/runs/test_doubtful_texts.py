"""Texts that look like descriptions and may be none: counted wherever a person looks, kept, and drawn again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select

from app.database.connection import reading
from app.database.schema import tallies
from app.database.tally_rows import counts_of, fold
from app.results.export import describe_export, export
from app.results.status import status
from producer.run_request import Inputs
from tests.support.desk import Desk, tell_what_is_seen
from tests.support.fake_engine import text_of
from tests.support.runs import write_inputs
from workers.engine.api import Completion, Request


def doubtful(request: Request) -> Completion:
    """Texts of one predicate are cut and repeat, those of another are reasoning without an answer."""
    if "roughly on " in text_of(request):
        return Completion("and so on " * 20, "length", request.sampling.max_new_tokens, 7)
    if "roughly has " in text_of(request):
        return Completion("", "length", request.sampling.max_new_tokens, 7, reasoning="Hm, let me", closed=False)
    return Completion("An answer.", "stop", 3, 7, reasoning="Easy.")


@pytest.fixture
def desk(database: Engine, tmp_path: Path) -> Desk:
    return Desk(database, tmp_path)


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    """Six pairs of two predicates each."""
    return write_inputs(tmp_path / "in", images=2, pairs=3, predicates=2)


@pytest.fixture
def described(desk: Desk, inputs: Inputs) -> tuple[int, int, int]:
    """The run is described; gives how many texts there are to be cut, repeating, without an answer."""
    desk.engine.answer = doubtful
    desk.enqueue(inputs)
    desk.describe()
    stage1 = json.loads(inputs.stage1_files[0].read_text())["per_image_top100_candidates"]
    predicates = [each["predicted_predicate"] for candidates in stage1.values() for each in candidates]
    repeating, unclosed = predicates.count("on"), predicates.count("has")
    assert repeating
    assert unclosed
    return repeating + unclosed, repeating, unclosed


def test_they_are_counted_in_status_summary_and_the_last_lines(
    desk: Desk, tmp_path: Path, described: tuple[int, int, int]
) -> None:
    now = status(desk.database, None, 4).as_dict()
    assert (now["texts_cut_off"], now["texts_repeating"], now["texts_unclosed"]) == described
    assert now["texts"] == 12
    summary = desk.published()["summary"]
    assert (summary["texts_cut_off"], summary["texts_repeating"], summary["texts_unclosed"]) == described
    first, *doubts = describe_export(export(desk.database, tmp_path / "again.json")).split("\n")
    assert "6 results" in first
    assert [line.split(" ")[0] for line in doubts] == [str(count) for count in described]
    assert [word for line, word in zip(doubts, ("cut at the limit", "over and over", "without an answer"), strict=True)
            if word not in line] == []  # fmt: skip


def test_a_run_without_any_says_nothing(desk: Desk, inputs: Inputs, tmp_path: Path) -> None:
    desk.enqueue(inputs)
    desk.describe()
    assert "\n" not in describe_export(export(desk.database, tmp_path / "out.json"))
    with reading(desk.database) as connection:
        assert not [name for name in connection.execute(select(tallies.c.process)).scalars() if "texts" in name]


def test_details_hold_the_reasoning_and_texts_the_answers_alone(
    desk: Desk, tmp_path: Path, described: tuple[int, int, int]
) -> None:
    done = export(desk.database, tmp_path / "details.json", details=True)
    results = json.loads(done.path.read_text())["results"]
    thoughts = [each for result in results for each in result.get("stage2_reasoning", [])]
    assert thoughts.count("Hm, let me") == described[2]
    assert "Easy." in thoughts
    texts = [each["generated_description"] for result in results for each in result["stage2_generated"]]
    assert {text for text in texts if "and so on" not in text} == {"", "An answer."}
    assert "stage2_reasoning" not in str(desk.published())


def test_counts_follow_what_is_drawn_again_and_processes_that_end(
    desk: Desk, inputs: Inputs, described: tuple[int, int, int]
) -> None:
    run = desk.run()
    with desk.database.begin() as connection:
        fold(connection, "w")
        before = counts_of(connection, run)
    assert (before.texts_cut, before.texts_repeating, before.texts_unclosed) == described
    with reading(desk.database) as connection:
        names = set(connection.execute(select(tallies.c.process)).scalars())
    assert not [name for name in names if name.endswith("w")]
    desk.engine.answer = tell_what_is_seen
    desk.enqueue(inputs, top_k=1, update=True)
    desk.describe()
    with reading(desk.database) as connection:
        after = counts_of(connection, desk.run())
    counted = [each for result in desk.published()["results"] for each in result["stage2_generated"]]
    assert after.texts == len(counted) == 6
    assert after.texts_repeating == sum("and so on" in each["generated_description"] for each in counted)
    assert after.texts_unclosed == sum(each["generated_description"] == "" for each in counted)
    assert after.texts_repeating < described[1] or after.texts_unclosed < described[2]


def test_a_process_of_a_long_name_counts_as_well(desk: Desk, inputs: Inputs) -> None:
    desk.engine.answer = doubtful
    desk.enqueue(inputs)
    run = desk.run()
    long = "w" * 200
    with desk.worker(long) as runner:
        for pair_id in desk.pending():
            runner.run(run.uuid, pair_id)
    with desk.database.begin() as connection:
        before = counts_of(connection, run)
        fold(connection, long)
        assert counts_of(connection, run) == before
        names = set(connection.execute(select(tallies.c.process)).scalars())
    assert before.texts_repeating
    assert all(len(name) < 100 for name in names)


def test_a_copied_text_keeps_its_marks(desk: Desk, inputs: Inputs, described: tuple[int, int, int]) -> None:
    desk.enqueue(inputs, "copy")
    assert desk.describe("copy") == 0
    summary = desk.published("copy")["summary"]
    assert (summary["texts_cut_off"], summary["texts_repeating"], summary["texts_unclosed"]) == described


SHAPES = [{"top_p": 0.5}, {"top_k_sampling": 3}, {"repetition_penalty": 1.2}, {"presence_penalty": -0.5}]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: next(iter(shape)))
def test_texts_of_another_sampling_are_not_reused(desk: Desk, inputs: Inputs, shape: dict[str, Any]) -> None:
    desk.enqueue(inputs, temperature=0.5)
    desk.describe()
    desk.enqueue(inputs, "other", temperature=0.5, **shape)
    assert desk.describe("other") == 12
    desk.enqueue(inputs, "same as other", temperature=0.5, **shape)
    assert desk.describe("same as other") == 0
