"""The exported file, read by a checker that knows only the specification; written whole or not at all."""

from __future__ import annotations

import json
import os
import stat
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from sqlalchemy import Engine, select

from app.database.connection import reading
from app.database.result_rows import described_pairs
from app.database.run_rows import find_run
from app.database.schema import pairs, results
from app.errors import ExportError
from app.results import export as export_module
from app.results.export import export
from tests.support.runs import StoredRun, describe, described, fail, pair, source_of, store_run


def check(document: Any, style: str = "per-predicate") -> list[dict[str, Any]]:
    """The results of a published file, after everything that the specification says of one."""
    assert set(document) == {"summary", "results"}
    summary: dict[str, Any] = document["summary"]
    results: list[dict[str, Any]] = document["results"]
    for name in ("total_pairs", "total_images", "top_k_relations", "generation_max_tokens", "num_gpus"):
        assert type(summary[name]) is int, name
    assert type(summary["workers_per_gpu"]) is int
    assert type(summary["generation_temperature"]) is float
    assert summary["total_pairs"] == len(results)
    assert summary["total_images"] == len({str(result["image_id"]) for result in results})
    keys = [
        (str(r["image_id"]), r["subject_id"], r["object_id"]) if "subject_id" in r
        else (str(r["image_id"]), r["subject"], r["object"]) for r in results
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    for result in results:
        check_result(result, style)
    return results


def check_result(result: dict[str, Any], style: str) -> None:
    """One result's names and types."""
    assert type(result["subject"]) is type(result["object"]) is str
    assert type(result["has_gt"]) is bool
    assert all(type(predicate) is str for predicate in result["gt_predicates"])
    top_k = result["stage1_top_k"]
    assert all(set(one) == {"predicate", "similarity"} for one in top_k)
    assert [one["similarity"] for one in top_k] == sorted((one["similarity"] for one in top_k), reverse=True)
    if style == "per-pair":
        assert result["ranked_predicates"] == [one["predicate"] for one in top_k]
        assert type(result["stage2_generated_description"]) is str
        assert "stage2_generated" not in result
        return
    generated = result["stage2_generated"]
    assert all(set(one) == {"predicate", "similarity", "generated_description"} for one in generated)
    assert all(type(one["generated_description"]) is str for one in generated)
    assert [{name: one[name] for name in ("predicate", "similarity")} for one in generated] == top_k


def describe_all(database: Engine, stored: StoredRun, but: int = 0) -> None:
    """Results for all pairs but the last ``but``, written in the reverse order."""
    with database.begin() as connection:
        for at, pair_id in reversed(list(enumerate(stored.ids[: len(stored.ids) - but]))):
            describe(connection, pair_id, [f"first {at}", f"second {at} \u4e00 \ud83d\ude00 \x00"])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "results.json"


def test_the_file_is_as_specified_and_in_the_order_of_the_input(database: Engine, out: Path) -> None:
    mixed = [pair(3, by_id=True), pair(0), pair(2, image_id="x"), pair(1, image_id=2.5)]
    describe_all(database, store_run(database, mixed))
    done = export(database, out)
    found = check(json.loads(out.read_text()))
    assert [result["subject"] for result in found] == [f"subject {number}" for number in range(4)]
    assert [result["image_id"] for result in found] == [1, 2.5, "x", 1]
    assert type(found[0]["image_id"]) is int
    assert found[0]["stage2_generated"][1]["generated_description"] == "second 0 \u4e00 \U0001f600 \x00"
    assert [(r.get("subject_id"), r.get("object_id")) for r in found] == [(None, None)] * 3 + [(1, 5)]
    assert (done.written, done.pending, done.failed) == (4, 0, 0)


def test_a_pair_style_run_has_one_description_a_pair(database: Engine, out: Path) -> None:
    stored = store_run(database, [pair(0), pair(1)], style="per-pair")
    with database.begin() as connection:
        for pair_id in stored.ids:
            describe(connection, pair_id, ["reasoned"])
    export(database, out)
    found = check(json.loads(out.read_text()), "per-pair")
    assert found[0]["stage2_generated_description"] == "reasoned"


def test_failed_and_missing_pairs_are_absent_and_counted(database: Engine, out: Path) -> None:
    stored = store_run(database, [pair(number) for number in range(5)])
    describe_all(database, stored, but=2)
    with database.begin() as connection:
        fail(connection, stored.ids[4])
    done = export(database, out)
    document = json.loads(out.read_text())
    assert len(check(document)) == done.written == 3
    assert (done.pending, done.failed) == (1, 1)
    assert (document["summary"]["pending_pairs"], document["summary"]["failed_pairs"]) == (1, 1)


def test_a_run_without_results_is_a_file_without_results(database: Engine, out: Path) -> None:
    store_run(database, [pair(0)])
    export(database, out)
    assert check(json.loads(out.read_text())) == []


def test_an_export_is_of_the_whole_run_whoever_enqueued_last(database: Engine, out: Path) -> None:
    describe_all(database, store_run(database, [pair(number) for number in range(4)]))
    store_run(database, [pair(number, position=9 - number) for number in range(1, 3)], source=source_of("few"))
    done = export(database, out)
    found = check(json.loads(out.read_text()))
    assert [result["subject"] for result in found] == [f"subject {number}" for number in range(4)]
    assert (done.written, done.pending) == (4, 0)


def test_details_tell_how_descriptions_ended(database: Engine, out: Path) -> None:
    describe_all(database, store_run(database, [pair(0)]))
    export(database, out, details=True)
    (result,) = check(json.loads(out.read_text()))
    assert (result["stage2_finish_reasons"], result["stage2_tokens"]) == (["stop", "stop"], [2, 2])


def test_json_lines_hold_the_same_results(database: Engine, out: Path) -> None:
    describe_all(database, store_run(database, [pair(number) for number in range(3)]))
    export(database, out)
    lines = out.with_suffix(".jsonl")
    export(database, lines)
    assert [json.loads(line) for line in lines.read_text().split("\n")[:-1]] == json.loads(out.read_text())["results"]


@pytest.mark.parametrize("style", ["per-predicate", "per-pair"])
def test_parquet_holds_the_same_results(database: Engine, out: Path, style: str) -> None:
    describe_all(database, store_run(database, [pair(0, by_id=True), pair(1, image_id="x", by_id=True)], style=style))
    export(database, out)
    table = pq.read_table(_parquet(database, out))
    wanted = check(json.loads(out.read_text()), style)
    for row, result in zip(table.to_pylist(), wanted, strict=True):
        ids = {name: str(result[name]) for name in ("image_id", "subject_id", "object_id")}
        assert {name: row[name] for name in result} == result | ids
    assert json.loads(table.schema.metadata[b"summary"])["total_pairs"] == 2


def _parquet(database: Engine, out: Path) -> Path:
    path = out.with_suffix(".parquet")
    export(database, path)
    return path


def test_a_failure_half_way_leaves_the_old_file_and_nothing_else(
    database: Engine, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe_all(database, store_run(database, [pair(number) for number in range(3)]))
    export(database, out)
    before = out.read_bytes()

    def fails(*_: Any, **__: Any) -> Iterator[Any]:
        yield next(iter(records))
        raise OSError(28, "No space left on device")

    with reading(database) as connection:
        run = find_run(connection, None)
        records = list(described_pairs(connection, run))
    monkeypatch.setattr(export_module, "described_pairs", fails)
    with pytest.raises(ExportError, match="No space left"):
        export(database, out)
    assert out.read_bytes() == before
    assert os.listdir(out.parent) == [out.name]


def test_the_file_can_be_read_by_whom_the_umask_allows(database: Engine, out: Path) -> None:
    store_run(database, [pair(0)])
    mask = os.umask(0o027)
    try:
        export(database, out)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(out.stat().st_mode) == 0o640


@pytest.mark.parametrize("path", ["file/below.json", "."])
def test_a_place_that_cannot_be_written_is_told(database: Engine, tmp_path: Path, path: str) -> None:
    store_run(database, [pair(0)])
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=str(tmp_path)):
        export(database, tmp_path / path)
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]


def test_memory_does_not_grow_with_the_run(database: Engine, out: Path) -> None:
    def peak(pairs: int, name: str) -> int:
        describe_in_bulk(database, store_run(database, [pair(number) for number in range(pairs)], name))
        tracemalloc.start()
        try:
            export(database, out, run_name=name)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10, "warm")
    assert peak(4_500, "large") < 1.5 * peak(1_500, "small") + 1_000_000


def describe_in_bulk(database: Engine, stored: StoredRun) -> None:
    """The same result for every pair of the run."""
    identity = ("run_id", "key", "image_id", "subject", "object", "request")
    with database.begin() as connection:
        query = select(pairs.c.id.label("pair_id"), *(pairs.c[name] for name in identity))
        found = connection.execute(query.where(pairs.c.run_id == stored.run.id)).mappings()
        same = {"descriptions": described(), "worker": "w", "attempts": 1, "started_at": 1.0, "finished_at": 2.0}
        connection.execute(results.insert(), [{**row, **same} for row in found])
