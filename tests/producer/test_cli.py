"""The ``producer`` command: what it enqueues, what it says, what it refuses, and that it waits for room."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, select

from app.database.connection import reading
from app.database.run_rows import find_run
from app.database.schema import pairs, runs
from app.pair import Pair
from app.queue.celery_app import make_app
from app.queue.embedded import EmbeddedBroker
from app.queue.keys import PREFIX, run_lists
from producer.cli import main
from producer.enqueue import prepare, publish
from producer.progress import Progress
from producer.run_request import Inputs
from tests.conftest import MakeSettings
from tests.support.runs import describe, fail, request_for, write_inputs

Producer = Callable[..., Result]


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return write_inputs(tmp_path / "in", images=3, pairs=2)


@pytest.fixture
def producer(database_url: str, make_settings: MakeSettings, broker: EmbeddedBroker) -> Producer:
    """Runs ``producer`` with this test's database and broker."""

    def call(*arguments: object, **environment: str) -> Result:
        ours = {"DATABASE_URL": database_url, "FARM_STATE_DIR": str(make_settings().state_dir)}
        return CliRunner().invoke(main, [str(word) for word in arguments], env=ours | environment)

    return call


def files(inputs: Inputs, *more: object) -> tuple[object, ...]:
    model = ("--model-path", "some/model")
    return ("--stage1-result", inputs.stage1, "--input-data", inputs.images, *model, *more)


def waiting(broker: EmbeddedBroker) -> list[int]:
    """The pair ids of all messages."""
    from base64 import b64decode

    server = broker._client()
    lists = [key for key in server.keys(PREFIX + "*") if server.type(key) == b"list"]
    bodies = [json.loads(text)["body"] for key in lists for text in server.lrange(key, 0, -1)]
    return sorted(json.loads(b64decode(body))[0][1] for body in bodies)


def test_enqueue_reports_as_json(producer: Producer, inputs: Inputs, broker: EmbeddedBroker, database: Engine) -> None:
    found = producer("enqueue", *files(inputs), "--json")
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert {"run", "pairs", "enqueued", "already_done", "dropped"} <= set(report)
    assert (report["run"], report["pairs"], report["enqueued"], report["already_done"]) == ("default", 6, 6, 0)
    assert report["dropped"] == {}
    with reading(database) as connection:
        assert waiting(broker) == sorted(connection.execute(select(pairs.c.id)).scalars())


def test_enqueue_sends_exactly_the_pairs_without_a_row(
    producer: Producer, inputs: Inputs, broker: EmbeddedBroker, database: Engine
) -> None:
    producer("enqueue", *files(inputs))
    broker._client().flushall()
    with database.begin() as connection:
        first, second, *rest = connection.execute(select(pairs.c.id).order_by(pairs.c.position)).scalars()
        describe(connection, first)
        fail(connection, second, "model error", "none", attempts=3)
    report = json.loads(producer("enqueue", *files(inputs), "--json").stdout)
    assert (report["pairs"], report["enqueued"], report["already_done"], report["failed"]) == (6, 4, 1, 1)
    assert waiting(broker) == sorted(rest)


def test_boxes_of_another_form_are_told_with_the_option_that_mends_it(producer: Producer, inputs: Inputs) -> None:
    images = json.loads(inputs.images.read_text())
    for image in images:
        for each in image["objects"]:
            each["bbox"] = [each["bbox"][at] / (64, 48, 64, 48)[at] for at in range(4)]
    inputs.images.write_text(json.dumps(images))
    said = producer("enqueue", *files(inputs))
    assert said.exit_code == 0
    assert "--box-format relative?" in said.stderr
    assert "WARNING" not in producer("enqueue", *files(inputs, "--box-format", "relative", "--update")).stderr


def test_a_repeat_tells_what_is_still_to_be_generated_and_that_a_pause_keeps_it_from_that(
    producer: Producer, inputs: Inputs
) -> None:
    assert json.loads(producer("enqueue", *files(inputs), "--json").stdout)["texts_new"] == 12
    producer("pause", "default")
    found = producer("enqueue", *files(inputs), "--json")
    assert json.loads(found.stdout)["texts_new"] == 12
    assert "run default is paused: `producer resume default`" in found.stderr


def test_where_an_image_is_missing_the_refusal_says_so_and_where_all_are_what_to_do(
    producer: Producer, inputs: Inputs
) -> None:
    producer("enqueue", *files(inputs))
    (inputs.image_root / "0.png").unlink()
    assert "dropped from these inputs: 2 image file missing" in producer("enqueue", *files(inputs)).output
    for image in inputs.image_root.glob("*.png"):
        image.unlink()
    found = producer("enqueue", *files(inputs))
    assert (found.exit_code, "--image-prefix OLD=NEW" in found.output) == (1, True), found.output


def test_a_run_that_is_made_again_leaves_nothing_in_the_queue(
    producer: Producer, inputs: Inputs, broker: EmbeddedBroker
) -> None:
    producer("enqueue", *files(inputs))
    assert producer("enqueue", *files(inputs), "--seed", 3).exit_code == 0
    assert len(waiting(broker)) == 6


def test_retry_puts_failures_back_by_reason(
    producer: Producer, inputs: Inputs, broker: EmbeddedBroker, database: Engine
) -> None:
    producer("enqueue", *files(inputs))
    with database.begin() as connection:
        ids = list(connection.execute(select(pairs.c.id).order_by(pairs.c.id)).scalars())
        for pair_id, reason in zip(ids, ["model error"] * 2 + ["image missing"] * 4, strict=True):
            fail(connection, pair_id, reason, "none", attempts=3)
    broker._client().flushall()
    found = producer("retry", "--reason", "model error", "--json")
    assert json.loads(found.stdout) == {"run": "default", "retried": 2}
    assert waiting(broker) == ids[:2]
    assert json.loads(producer("retry", "--json").stdout)["retried"] == 4
    assert producer("retry").output == "retried: 0 failed pairs requeued\n"


def test_what_is_dropped_is_counted_and_kept_with_the_run(producer: Producer, inputs: Inputs) -> None:
    (stage1,) = inputs.stage1_files
    document = json.loads(stage1.read_text())
    candidates = document["per_image_top100_candidates"]
    candidates["1"] += [{**candidates["1"][0], "subject": "nobody"}, "no candidate"]
    candidates["absent"] = [candidates["1"][0]]
    stage1.write_text(json.dumps(document))
    report = json.loads(producer("enqueue", *files(inputs), "--json").stdout)
    assert report["pairs"] == 6
    assert report["dropped"] == {
        "subject not among the image's objects": 1,
        "malformed candidate": 1,
        "image not in the second input": 1,
    }
    assert "malformed candidate" in producer("enqueue", *files(inputs)).output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--temperature", "0.7"), "temperature: 0.1 in the run, 0.7 now"),
        (("--style", "per-pair"), "style: 'per-predicate' in the run, 'per-pair' now"),
        (("--top-k", "3"), "top_k: 10 in the run, 3 now"),
        (("--max-pixels", "999"), "max_pixels: None in the run, 999 now"),
    ],
)
def test_a_run_with_other_settings_is_refused_and_left_as_it_was(
    producer: Producer, inputs: Inputs, database: Engine, options: tuple[str, ...], said: str
) -> None:
    producer("enqueue", *files(inputs))
    with database.begin() as connection:
        describe(connection, connection.execute(select(pairs.c.id).limit(1)).scalar_one())
        before = connection.execute(select(runs)).all()
    found = producer("enqueue", *files(inputs, *options))
    assert found.exit_code == 1
    assert said in found.output
    with reading(database) as connection:
        assert connection.execute(select(runs)).all() == before
    assert producer("enqueue", *files(inputs, *options, "--run", "other")).exit_code == 0


def test_a_file_that_is_wrong_as_a_whole_changes_nothing(
    producer: Producer, inputs: Inputs, database: Engine, broker: EmbeddedBroker
) -> None:
    (stage1,) = inputs.stage1_files
    stage1.write_text(stage1.read_text()[:-20])
    found = producer("enqueue", *files(inputs))
    assert found.exit_code == 1
    assert str(inputs.stage1) in found.output
    assert "Traceback" not in found.output
    with reading(database) as connection:
        assert connection.execute(select(runs)).all() == []
    assert waiting(broker) == []


@pytest.mark.parametrize(
    "options",
    [
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--temperature", "inf"),
        ("--top-k", "0"),
        ("--max-new-tokens", "0"),
        ("--min-pixels", "9", "--max-pixels", "8"),
        ("--run", " "),
        ("--style", "per-pair", "--prompt-template", __file__),
        ("--style", "haiku"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(
    producer: Producer, inputs: Inputs, options: tuple[str, ...]
) -> None:
    assert producer("enqueue", *files(inputs, *options)).exit_code == 2


def test_a_template_of_ones_own_is_kept_with_the_run(
    producer: Producer, inputs: Inputs, database: Engine, tmp_path: Path
) -> None:
    template = tmp_path / "mine.txt"
    template.write_text("How is {subject_name} {top_predicate} {object_name}?\n")
    assert producer("enqueue", *files(inputs, "--prompt-template", template)).exit_code == 0
    with reading(database) as connection:
        assert find_run(connection, None).template["text"] == "How is {subject_name} {top_predicate} {object_name}?"
    with database.begin() as connection:
        describe(connection, connection.execute(select(pairs.c.id).limit(1)).scalar_one())
    template.write_text("Why is {subject_name} {top_predicate} {object_name}?\n")
    assert "template_hash" in producer("enqueue", *files(inputs, "--prompt-template", template)).output


def test_no_more_is_published_than_the_runs_window_holds_and_each_pair_once(
    database: Engine, make_settings: MakeSettings, broker: EmbeddedBroker, inputs: Inputs
) -> None:
    app, quiet, shards = make_app(make_settings()), Progress(quiet=True), make_settings().queue_shards
    prepared = prepare(database, replace(request_for(), options={"window": 2}), inputs, quiet)
    lists = [PREFIX + name for name in run_lists(prepared.run.model_key, prepared.run.uuid, shards)]
    server = broker._client()
    seen: list[int] = []
    while len(seen) < 6:
        assert publish(database, app, prepared.run, shards, quiet, total=6) == 2
        assert publish(database, app, prepared.run, shards, quiet, total=6) == 0, "it is full"
        seen += waiting(broker)
        for key in lists:
            server.delete(key)
    assert publish(database, app, prepared.run, shards, quiet, total=6) == 0, "nothing is left"
    with reading(database) as connection:
        assert sorted(seen) == sorted(connection.execute(select(pairs.c.id)).scalars())


def test_two_producers_at_once_make_one_run(database: Engine, inputs: Inputs) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as threads:
        quiet = Progress(quiet=True)
        made = list(threads.map(lambda _: prepare(database, request_for(), inputs, quiet), range(4)))
    assert len({prepared.run.uuid for prepared in made}) == 1
    with reading(database) as connection:
        assert find_run(connection, None).expected == 6


def test_the_embedded_broker_is_started_and_stopped_by_command(make_settings: MakeSettings) -> None:
    environment = {"FARM_STATE_DIR": str(make_settings().state_dir)}
    said = [CliRunner().invoke(main, ["broker", word], env=environment).output.split(":")[0].strip()
            for word in ("stop", "start", "start", "stop", "stop")]  # fmt: skip
    assert said == ["not running", "started", "running", "stopped", "not running"]


def test_an_unknown_setting_in_the_environment_is_one_line(producer: Producer, inputs: Inputs) -> None:
    found = producer("enqueue", *files(inputs), FARM_LEASES_S="3")
    assert found.exit_code == 1
    assert found.output.startswith("Error: unknown setting FARM_LEASES_S")


def test_a_run_keeps_how_it_samples(producer: Producer, inputs: Inputs, database: Engine) -> None:
    chosen = ("--top-p", 0.8, "--top-k-sampling", 20, "--repetition-penalty", 1.05, "--presence-penalty", 1.5)
    assert producer("enqueue", *files(inputs, *chosen)).exit_code == 0
    with reading(database) as connection:
        settings = find_run(connection, None).settings
    assert (settings.top_p, settings.top_k_sampling) == (0.8, 20)
    assert (settings.repetition_penalty, settings.presence_penalty) == (1.05, 1.5)


@pytest.mark.parametrize(
    "wrong",
    [("--top-p", "0"), ("--top-p", "1.1"), ("--top-p", "nan"), ("--top-k-sampling", "-1"), ("--top-k-sampling", "2.5"),
     ("--repetition-penalty", "0"), ("--repetition-penalty", "inf"), ("--presence-penalty", "3")],
    ids=" ".join,
)  # fmt: skip
def test_a_way_of_sampling_that_makes_no_sense_is_refused(
    producer: Producer, inputs: Inputs, database: Engine, wrong: tuple[str, str]
) -> None:
    done = producer("enqueue", *files(inputs, *wrong))
    assert done.exit_code == 2
    assert wrong[0] in done.output
    with reading(database) as connection:
        assert connection.execute(select(runs)).all() == []


@pytest.mark.parametrize(
    ("given", "language"),
    [((), None), (("--verify",), "zh"), (("--verify", "en"), "en"), (("--verify", "--json"), "zh")],
)
def test_whether_relations_hold_is_asked_in_the_language_that_is_named(
    producer: Producer, inputs: Inputs, database: Engine, given: tuple[str, ...], language: str | None
) -> None:
    assert producer("enqueue", *files(inputs, *given)).exit_code == 0
    with reading(database) as connection:
        asked = {Pair.from_json(payload).verify for payload in connection.execute(select(pairs.c.payload)).scalars()}
    assert asked == {None if language is None else (language, 0)}


def test_a_language_that_has_no_question_is_refused(producer: Producer, inputs: Inputs) -> None:
    refused = producer("enqueue", *files(inputs, "--verify", "fr"))
    assert refused.exit_code == 2
    assert "'fr' is not one of 'zh', 'en'" in refused.output
