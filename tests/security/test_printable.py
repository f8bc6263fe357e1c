"""What comes from data steers no terminal and forges no log line, wherever a person reads it."""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, select

from app.database.schema import pairs
from app.errors import printable
from app.logs import LineFormatter
from app.queue.embedded import EmbeddedBroker
from app.results.cli import main as results
from producer.cli import main as producer
from tests.conftest import MakeSettings
from tests.support.runs import fail, write_inputs

HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\n2026-01-01 00:00:00 CRITICAL forged\u202e\x9b31m"

Call = Callable[..., Result]


def harmful(text: str) -> list[str]:
    """The characters that do something instead of being seen; ends of lines are ours."""
    return [each for each in text if each != "\n" and unicodedata.category(each) in ("Cc", "Cf", "Zl", "Zp")]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, 中文, é", "plain, 中文, é"),
        ("a\x1b[2Jb\nc", r"a\x1b[2Jb\nc"),
        ("\x9b31m\x00\x7f", r"\x9b31m\x00\x7f"),
        ("abc\u202egpj.exe", r"abc\u202egpj.exe"),
        ("\ud83d", r"\ud83d"),
        ("\u2028line", r"\u2028line"),
        ("می\u200cخواهم\u3000x\xa0y", "می\u200cخواهم\u3000x\xa0y"),
    ],
)  # fmt: skip
def test_controls_become_escapes_and_scripts_stay(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.fixture
def call(database_url: str, make_settings: MakeSettings, broker: EmbeddedBroker) -> Call:
    """Any command, with this test's database and broker."""
    environment = {"DATABASE_URL": database_url, "FARM_STATE_DIR": str(make_settings().state_dir)}
    programs = {"producer": producer, "results": results}

    def run(program: str, *arguments: object) -> Result:
        return CliRunner().invoke(programs[program], [str(word) for word in arguments], env=environment)

    return run


def test_hostile_names_are_harmless_in_every_command(call: Call, tmp_path: Path, database: Engine) -> None:
    inputs = write_inputs(tmp_path / "in", images=2, pairs=2)
    for path in (inputs.images, *inputs.stage1_files):
        path.write_text(path.read_text().replace("thing 1", json.dumps("thing" + HOSTILE)[1:-1]))
    images = json.loads(inputs.images.read_text())
    images.append({"image_id": "lost" + HOSTILE, "image_path": HOSTILE + ".png", "objects": []})
    inputs.images.write_text(json.dumps(images))
    stage1 = json.loads(inputs.stage1_files[0].read_text())
    found = stage1["per_image_top100_candidates"]
    found["lost" + HOSTILE] = found["1"]
    found["1"] = [*found["1"], {**found["1"][0], "subject": HOSTILE}]
    inputs.stage1_files[0].write_text(json.dumps(stage1))
    files = ("--stage1-result", inputs.stage1, "--input-data", inputs.images, "--model-path", "some/model")
    said = [call("producer", "enqueue", *files)]
    with database.begin() as connection:
        for pair_id in connection.execute(select(pairs.c.id)).scalars():
            fail(connection, pair_id, "model error", "it said " + HOSTILE)
    said += [call("results", name) for name in ("drops", "failures", "status", "runs")]
    said.append(call("results", "failures", "--json"))
    assert [each.exit_code for each in said] == [0] * len(said), said[0].output
    refused = [
        call("results", "status", "--run", HOSTILE),
        call("producer", "enqueue", *files, "--run", HOSTILE),
        call("producer", "enqueue", *files, "--top-k", HOSTILE),
        call("producer", "pause", HOSTILE),
        call("producer", HOSTILE),
        call("producer", "enqueue", "--stage1-result", tmp_path / ("no" + HOSTILE), "--input-data", inputs.images),
        call("results", "export", "--out", tmp_path / "in" / "0.png" / HOSTILE),
    ]
    assert all(each.exit_code for each in refused)
    for each in (*said, *refused):
        assert harmful(each.output) == [], each.output
    lines = [line for each in said for line in each.output.splitlines()]
    assert not any(line.startswith("2026-01-01") for line in lines), "a line was forged"
    assert "owned" in said[0].output + said[2].output, "the names were shown at all"


def test_a_log_record_is_one_line_and_its_traceback_indented() -> None:
    formatter = LineFormatter("%(levelname)s %(message)s")
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, "pair of %s", ("a" + HOSTILE,), None)
    assert "\n" not in formatter.format(record)
    assert harmful(formatter.format(record)) == []
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        record.exc_info = (ValueError, error, error.__traceback__)
    first, *rest = formatter.format(record).split("\n")
    assert first.startswith("INFO pair of a")
    assert rest
    assert all(line.startswith("    ") for line in rest)
    assert harmful(formatter.format(record)) == []
    assert record.exc_info, "another handler finds the record as it was"
