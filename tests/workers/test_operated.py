"""What an operator sees of a farm that works: its log lines and its summaries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from producer.run_request import Inputs
from tests.support.drawn_inputs import draw_inputs
from tests.support.farm import QUICK, Farm
from tests.support.servers import SqliteFile
from tests.support.waits import wait_for

PAIRS, BAD = 18, 6  # the last of three images is cut off


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Farm]:
    """A farm of one worker, with a run that has ended: two images of pairs are described, one of them fails."""
    folder = tmp_path_factory.mktemp("operated")
    with Farm(folder, SqliteFile(folder / "farm.sqlite"), model=tiny_model, **QUICK) as made:
        made.start_worker(log_format="json", summary_s=0.5)
        drawn = draw_inputs(folder / "in", PAIRS, seed=1)
        made.enqueue(Inputs(drawn.stage1, drawn.images, drawn.images.parent), max_new_tokens=8)
        assert made.wait_done().failed == BAD
        yield made


def lines(farm: Farm) -> list[dict[str, Any]]:
    """The worker's log; what Celery prints before logging is set up is no part of it."""
    return [json.loads(line) for line in farm.workers[0].said.splitlines() if line.startswith("{")]


def test_every_line_about_a_pair_names_it(farm: Farm) -> None:
    failed = [line for line in lines(farm) if line["message"].startswith("pair failed")]
    images = {item["image_id"]: item for item in json.loads((farm.folder / "in" / "images.json").read_text())}
    assert len(failed) == BAD
    assert {(line["run"], line["image"]) for line in failed} == {("default", "2")}
    names = {each["class_name"] for each in images[2]["objects"]}
    assert {name for line in failed for name in (line["subject"], line["object"])} <= names


def test_a_worker_sums_up_what_it_did(farm: Farm) -> None:
    def summed() -> list[dict[str, Any]] | None:
        found = [line for line in lines(farm) if line["message"].startswith("summary of")]
        return found if sum(line["pairs"] + line["failed"] for line in found) == PAIRS else None

    found = wait_for(summed, "all pairs are summed up")
    busiest = max(found, key=lambda line: line["pairs"])
    assert busiest["tokens_per_s"] > 0
    assert busiest["descriptions_per_s"] > 0
    assert busiest["rows_possible"] >= busiest["rows_at_work"] > 0
    assert busiest["memory"]["resident"] > 2**20
    assert "image unreadable" in found[-1]["last_error"]
