"""Whether relations hold, asked with the descriptions or later: the numbers come, and no text is generated again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import select

from app.database import check_rows
from app.database.connection import reading
from app.database.pair_rows import done_pairs, verify
from app.database.schema import results
from app.database.tally_rows import counts_of, recount
from app.pair import Pair, verifications
from app.prompts import load_question
from app.results.export import export
from producer.check import check
from producer.cli import main
from producer.progress import Progress
from producer.run_request import Inputs
from tests.support.desk import Desk, tell_what_is_seen, texts
from tests.support.fake_engine import text_of
from tests.support.runs import write_inputs
from workers.engine.api import Completion, Request

QUESTIONS = 12  # 2 images of 3 pairs with 2 predicates


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return write_inputs(tmp_path / "in")


@pytest.fixture(autouse=True)
def answers(desk: Desk) -> None:
    """A model that finds that what lies "on" holds, and nothing else."""

    def answer(request: Request) -> Completion:
        if not request.candidates:
            return tell_what_is_seen(request)
        yes, no = (0.72, 0.08) if " on " in text_of(request) else (0.09, 0.81)
        shares = {2: (yes, no), 4: (0.0, yes, no, 0.0)}[len(request.candidates)]
        return Completion("?", "length", 1, 7, shares)

    desk.engine.answer = answer


def numbers(desk: Desk, name: str = "default") -> list[tuple[str, float | None]]:
    """Each predicate of the run's done pairs and its number."""
    found: list[tuple[str, float | None]] = []
    with reading(desk.database) as connection:
        for row in done_pairs(connection, desk.run(name)):
            pair = Pair.from_json(row.payload)
            found += zip(pair.predicates, verifications(pair, row.descriptions), strict=True)
    return found


def ask(desk: Desk, language: str = "zh", name: str = "default") -> int:
    """What ``producer verify`` stores."""
    with desk.database.begin() as connection:
        run = desk.run(name)
        return verify(connection, run, list(done_pairs(connection, run)), language)


def test_each_relation_has_its_number_and_every_text_is_what_it_was(desk: Desk, inputs: Inputs) -> None:
    desk.enqueue(inputs, "plain")
    desk.describe("plain")
    desk.enqueue(inputs, "verified", verify="zh", reuse=False)
    assert desk.describe("verified") == 2 * QUESTIONS
    assert desk.published("verified")["results"] == desk.published("plain")["results"]
    assert numbers(desk, "verified") == [(name, 0.9 if name == "on" else 0.1) for name, _ in numbers(desk, "plain")]
    assert {number for _, number in numbers(desk, "plain")} == {None}


@pytest.mark.parametrize("reuse", [True, False])
def test_what_is_described_already_is_verified_without_generating_it_again(
    desk: Desk, inputs: Inputs, reuse: bool
) -> None:
    desk.enqueue(inputs, reuse=reuse, temperature=0.7)
    desk.describe()
    before = desk.published()["results"]
    assert ask(desk) == 6
    assert desk.standing().done == 0
    assert desk.describe() == QUESTIONS
    assert desk.published()["results"] == before
    assert None not in dict(numbers(desk)).values()
    with reading(desk.database) as connection:
        counts, counted = counts_of(connection, desk.run()), recount(connection, desk.run())
    assert (counts.done, counts.stale, counts.texts) == (counted.done, counted.stale, QUESTIONS) == (6, 0, QUESTIONS)


def test_a_repeat_asks_nothing_and_another_language_asks_again(desk: Desk, inputs: Inputs) -> None:
    desk.enqueue(inputs, verify="zh")
    desk.describe()
    assert ask(desk) == 0
    assert ask(desk, "en") == 6
    assert desk.describe() == QUESTIONS
    assert dict(numbers(desk))["on"] == pytest.approx(0.72 / 0.80)


def test_enqueueing_again_with_or_without_verify_keeps_what_is_there(desk: Desk, inputs: Inputs) -> None:
    desk.enqueue(inputs)
    desk.describe()
    prepared = desk.enqueue(inputs, verify="zh")
    assert (prepared.stored.to_verify, prepared.stored.to_check, prepared.open) == (6, 0, 6)
    assert desk.describe() == QUESTIONS
    before = numbers(desk)
    for verify_again in (None, "zh"):
        assert desk.enqueue(inputs, verify=verify_again).open == 0
    assert numbers(desk) == before


def test_a_number_that_another_run_has_is_copied_with_its_text(desk: Desk, inputs: Inputs) -> None:
    for name in ("one", "two"):
        desk.enqueue(inputs, name, verify="zh")
        desk.describe(name)
    assert numbers(desk, "two") == numbers(desk, "one")
    assert desk.generated == 2 * QUESTIONS


def test_a_text_without_its_number_is_copied_and_asked_about(desk: Desk, inputs: Inputs) -> None:
    desk.enqueue(inputs, "plain")
    desk.describe("plain")
    assert desk.enqueue(inputs, "verified", verify="zh").open == 6
    assert desk.describe("verified") == QUESTIONS
    assert texts(desk.published("verified")["results"]) == texts(desk.published("plain")["results"])


def test_a_pair_style_has_a_number_for_each_predicate(desk: Desk, inputs: Inputs) -> None:
    desk.enqueue(inputs, style="per-pair", verify="en")
    assert desk.describe() == 6 + QUESTIONS
    assert {name: number for name, number in numbers(desk) if number} == {
        name: 0.9 if name == "on" else 0.1 for name, _ in numbers(desk)
    }


@pytest.mark.parametrize("failure", ["an error", "no probability"])
def test_a_question_without_an_answer_costs_no_description(desk: Desk, inputs: Inputs, failure: str) -> None:
    answer = desk.engine.answer

    def unable(request: Request) -> Completion:
        if not request.candidates:
            return tell_what_is_seen(request)
        if failure == "an error":
            raise RuntimeError("no logprobs here")
        return Completion("?", "length", 1, 7, (1e-5, 1e-6))

    desk.engine.answer = unable
    desk.enqueue(inputs, verify="zh")
    desk.describe()
    assert desk.standing().done == 6
    assert {number for _, number in numbers(desk)} == {None}
    desk.engine.answer = answer
    assert ask(desk) == 6  # a later try may do better
    assert desk.describe() == QUESTIONS
    assert None not in dict(numbers(desk)).values()


def test_questions_go_with_the_descriptions_that_begin_like_them_and_else_by_themselves(
    desk: Desk, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted: list[int] = []
    submit = desk.engine.submit

    def counting(requests: Sequence[Request]) -> list[Future[Completion]]:
        submitted.append(len(requests))
        return submit(requests)

    monkeypatch.setattr(desk.engine, "submit", counting)
    desk.enqueue(inputs, "built-in", verify="zh")
    desk.describe("built-in")
    assert submitted == [4] * 6
    submitted.clear()
    desk.enqueue(inputs, "another", verify="en")
    desk.describe("another")
    assert sorted(submitted) == [2] * 6  # its texts are known


def test_the_question_is_what_is_stored_and_the_export_shows_numbers_with_details_only(
    desk: Desk, inputs: Inputs, tmp_path: Path
) -> None:
    desk.enqueue(inputs, verify="zh")
    desk.describe()
    with reading(desk.database) as connection:
        stored = [each for row in connection.execute(select(results.c.descriptions)).scalars() for each in row]
    assert {each["question"] for each in stored} == {load_question("zh").template.hash}
    assert "verification" not in json.dumps(desk.published())
    export(desk.database, tmp_path / "details.json", run_name="default", details=True)
    detailed: list[dict[str, Any]] = json.loads((tmp_path / "details.json").read_text())["results"]
    assert [row["stage2_verification"] for row in detailed] == [
        [0.9 if one["predicate"] == "on" else 0.1 for one in row["stage2_generated"]] for row in detailed
    ]


def test_the_command_asks_what_is_done(desk: Desk, inputs: Inputs, database_url: str, tmp_path: Path) -> None:
    desk.enqueue(inputs)
    desk.describe()
    environment = {"DATABASE_URL": database_url, "FARM_STATE_DIR": str(tmp_path / "desk")}

    def said(*more: str) -> dict[str, Any]:
        done = CliRunner().invoke(main, ["verify", "--json", *more], env=environment)
        assert done.exit_code == 0, done.output
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    try:
        assert said() == {"run": "default", "pairs": 6}
        desk.describe()
        assert None not in dict(numbers(desk)).values()
        assert said("--run", "default") == {"run": "default", "pairs": 0}
    finally:
        CliRunner().invoke(main, ["broker", "stop"], env=environment)


def test_a_check_takes_the_numbers_over_and_ranks_by_them(desk: Desk, inputs: Inputs) -> None:
    desk.enqueue(inputs)
    desk.describe()

    def scored() -> tuple[int, bool]:
        check(desk.database, "default", None, Progress(quiet=True))
        with reading(desk.database) as connection:
            known = check_rows.figures_of(connection, desk.run())
        assert known is not None
        return known[1]["candidates_scored"], known[1]["verified"] is not None

    assert scored() == (0, False)
    ask(desk)
    desk.describe()
    assert scored() == (QUESTIONS, True)
