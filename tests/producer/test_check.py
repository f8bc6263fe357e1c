"""``producer check`` and ``results check``: what they count over whole runs, on each kind of database."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image
from sqlalchemy import Connection, Engine, func, select, update

from app.database import check_rows
from app.database.connection import reading
from app.database.run_rows import delete_run, find_run
from app.database.schema import checked_pairs, metadata, text_checks, truths
from app.judge.recall import KS
from app.results.cli import main as results_main
from app.results.judgement import checks_of, described
from producer import check as check_module
from producer.check import CheckedRun, check
from producer.cli import main as producer_main
from producer.progress import Progress
from producer.run_request import Inputs
from tests.support.desk import Desk, change

PREDICATES = ("on", "near", "under", "has", "of", "above")


@pytest.fixture
def desk(database: Engine, tmp_path: Path) -> Desk:
    return Desk(database, tmp_path / "desk")


def judged_inputs(folder: Path, *, relations: bool = True, images: int = 4, seed: int = 3) -> Inputs:
    """Images of four things with many candidates by id; one image has no file. Truth is drawn, too."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    entries: list[dict[str, Any]] = []
    stage1: dict[str, list[dict[str, Any]]] = {}
    for number in range(images):
        if number != 1:
            Image.new("RGB", (90, 90), (number, 9, 9)).save(folder / f"{number}.png")
        objects = [{"id": at, "class_name": "cat" if at % 2 else "dog", "bbox": [at * 20, 5, at * 20 + 15, 50]}
                   for at in range(4)]  # fmt: skip
        said = [_triple(rng) for _ in range(rng.randrange(1, 9))]
        entries.append({"image_id": number, "image_path": f"{number}.png", "objects": objects})
        if relations:
            entries[-1]["relations"] = [{"subject_id": s, "object_id": o, "predicate": p} for s, o, p in said]
        stage1[str(number)] = [
            {"subject": objects[s]["class_name"], "object": objects[o]["class_name"], "subject_id": s, "object_id": o,
             "predicted_predicate": p, "similarity": round(rng.random(), 3), "has_gt": (s, o, p) in said,
             "gt_predicates": sorted({each[2] for each in said if each[:2] == (s, o)})}
            for s, o, p in (_triple(rng) for _ in range(60))
        ]  # fmt: skip
    (folder / "stage1.json").write_text(json.dumps({"per_image_top100_candidates": stage1}))
    (folder / "images.json").write_text(json.dumps(entries))
    return Inputs(folder / "stage1.json", folder / "images.json", folder)


def _triple(rng: random.Random) -> tuple[int, int, str]:
    subject, object_ = rng.sample(range(4), 2)
    return subject, object_, rng.choice(PREDICATES)


def reference(inputs: Inputs, k: int, *, stated: bool, keep: Callable[[str, list[Any]], list[Any]]) -> list[float]:
    """R@K, mR@K and F1@K straight from the two files; ``keep`` says which candidates of an image take part."""
    stage1 = json.loads(inputs.stage1_files[0].read_text())["per_image_top100_candidates"]
    recalls: list[float] = []
    shares: dict[str, list[float]] = {}
    for entry in json.loads(inputs.images.read_text()):
        candidates = stage1[str(entry["image_id"])]
        if stated:
            truth = {(r["subject_id"], r["object_id"], r["predicate"]) for r in entry["relations"]}
        else:
            truth = {(c["subject_id"], c["object_id"], p) for c in candidates for p in c["gt_predicates"]}
        if not truth:
            continue
        best = sorted(keep(entry["image_path"], candidates), key=lambda each: -each["similarity"])[:k]
        found = {(c["subject_id"], c["object_id"], c["predicted_predicate"]) for c in best}
        recalls.append(len(truth & found) / len(truth))
        for predicate in {each[2] for each in truth}:
            those = {each for each in truth if each[2] == predicate}
            shares.setdefault(predicate, []).append(len(those & found) / len(those))
    recall, by_predicate = mean(recalls), mean(map(mean, shares.values()))
    return [recall, by_predicate, 2 * recall * by_predicate / (recall + by_predicate)]


def kept_after_cut(path: str, candidates: list[Any], top_k: int = 2) -> list[Any]:
    """The best candidates of each pair, none of the image without a file."""
    by_pair: dict[Any, list[Any]] = {}
    for each in candidates:
        by_pair.setdefault((each["subject_id"], each["object_id"]), []).append(each)
    best = (sorted(those, key=lambda each: -each["similarity"])[:top_k] for those in by_pair.values())
    return [] if path == "1.png" else [each for those in best for each in those]


def figures(found: dict[str, Any], k: int) -> list[float]:
    return [found[f"{name}@{k}"] for name in ("R", "mR", "F1")]


def looked_at(desk: Desk, name: str = "default") -> dict[str, Any]:
    with reading(desk.database) as connection:
        found = checks_of(connection, find_run(connection, name))
    assert described(found)
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def checked(desk: Desk, name: str = "default", language: str | None = None) -> CheckedRun:
    return check(desk.database, name, language, Progress(quiet=True))


@pytest.mark.parametrize("stated", [True, False], ids=["relations", "gt_predicates"])
def test_recall_equals_the_references(desk: Desk, tmp_path: Path, stated: bool) -> None:
    inputs = judged_inputs(tmp_path / "in", relations=stated)
    desk.enqueue(inputs, top_k=2)
    checked(desk)
    recall = looked_at(desk)["recall"]
    assert recall["truth"] == ("relations" if stated else "gt_predicates")
    for k in KS:
        expected = reference(inputs, k, stated=stated, keep=lambda _, candidates: candidates)
        assert figures(recall["stage1"], k) == pytest.approx(expected, abs=1e-12)
        expected = reference(inputs, k, stated=stated, keep=kept_after_cut)
        assert figures(recall["kept"], k) == pytest.approx(expected, abs=1e-12)
        assert sum(lost[f"R@{k}"] for lost in recall["lost"].values()) <= recall["stage1"][f"R@{k}"]
    fates = recall["triplets_by_fate"]
    assert min(fates["cut"], fates["dropped"], fates["kept"]) > 0
    assert sum(fates.values()) == recall["triplets"]
    assert recall["verified"] is None
    assert recall["mixed"] is None


def test_a_score_orders_the_candidates_anew(desk: Desk, tmp_path: Path) -> None:
    inputs = judged_inputs(tmp_path / "in")
    desk.enqueue(inputs, top_k=10)
    desk.describe()
    checked(desk)
    truth = {
        (entry["image_id"], str(r["subject_id"]), str(r["object_id"]), r["predicate"])
        for entry in json.loads(inputs.images.read_text())
        for r in entry["relations"]
    }
    with desk.database.begin() as connection:
        _score(connection, desk, lambda about: 1.0 if about in truth else 0.0)
    assert looked_at(desk)["recall_is_old"]
    assert checked(desk).figures_renewed
    recall = looked_at(desk)["recall"]
    kept = recall["triplets_by_fate"]["kept"]
    assert recall["candidates_scored"] == recall["candidates"] > kept > 0
    assert recall["verified"]["R@20"] == recall["kept"]["R@100"]  # a perfect score has all that can be had on top
    assert recall["kept"]["R@20"] < recall["mixed"]["R@20"] <= recall["verified"]["R@20"]


def _score(connection: Connection, desk: Desk, score: Callable[[tuple[Any, ...]], float]) -> None:
    run = find_run(connection, None)
    for pair in check_rows.unchecked(connection, run, "other rules", 0, 10_000):
        payload = pair.payload
        for position, (predicate, _) in enumerate(payload["candidates"]):
            about = payload["image_id"], str(payload["subject_id"]), str(payload["object_id"]), predicate
            mine = (text_checks.c.pair_id == pair.id, text_checks.c.position == position)
            connection.execute(update(text_checks).where(*mine).values(verification=score(about)))


def test_only_what_is_new_or_changed_is_checked_again(desk: Desk, tmp_path: Path) -> None:
    inputs = judged_inputs(tmp_path / "in", images=3)
    stored = desk.enqueue(inputs, top_k=1).stored.pairs
    desk.describe(most=5)
    assert checked(desk).pairs == 5
    assert looked_at(desk)["unchecked_pairs"] == 0
    desk.describe()
    assert looked_at(desk)["unchecked_pairs"] == stored - 5
    assert checked(desk) == CheckedRun("default", stored - 5, stored - 5, False, "zh")
    assert checked(desk).pairs == 0
    with desk.database.begin() as connection:  # scores outlive other rules, and end with their text
        connection.execute(update(text_checks).values(verification=0.5))
    assert checked(desk, language="en").pairs == stored
    with reading(desk.database) as connection:
        assert connection.execute(select(func.count(text_checks.c.verification))).scalar_one() == stored
    change(inputs.images, lambda images: images[0]["objects"][0].update(bbox=[1, 5, 16, 50]))
    assert (changed := desk.enqueue(inputs, top_k=1, update=True).stored.changed) > 0
    assert looked_at(desk)["texts"] == stored - changed  # those of older requests are not shown
    desk.describe()
    assert checked(desk, language="en").pairs == changed
    with reading(desk.database) as connection:
        assert connection.execute(select(func.count(text_checks.c.verification))).scalar_one() == stored - changed


def test_a_check_that_was_ended_goes_on_where_it_was(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = desk.enqueue(judged_inputs(tmp_path / "in", images=3), top_k=1).stored.pairs
    desk.describe()
    monkeypatch.setattr(check_module, "PAIRS_A_BATCH", 4)
    with pytest.raises(KeyboardInterrupt):
        check(desk.database, None, None, _EndsAfter(2))
    done = _rows(desk, checked_pairs)
    assert 0 < done < stored
    assert checked(desk).pairs == stored - done
    assert _rows(desk, checked_pairs) == _rows(desk, text_checks) == stored


class _EndsAfter(Progress):
    """Ends the command after some batches, as Ctrl-C does."""

    def __init__(self, batches: int) -> None:
        super().__init__(quiet=True)
        self._left = batches

    def phase(self, *_: Any, **__: Any) -> Any:
        return nullcontext(self._advance)

    def _advance(self, _: int) -> None:
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt


def _rows(desk: Desk, table: Any) -> int:
    with reading(desk.database) as connection:
        return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


def test_an_enqueue_again_renews_the_truth_and_nothing_else(desk: Desk, tmp_path: Path) -> None:
    inputs = judged_inputs(tmp_path / "in")
    desk.enqueue(inputs)
    before = _truths(desk)
    assert {each["image_id"] for each in before} == {"0", "1", "2", "3"}
    desk.enqueue(inputs)
    assert _truths(desk) == before
    change(inputs.images, lambda images: images[0].update(relations=[]))
    change(inputs.stage1_files[0], lambda document: document["per_image_top100_candidates"].pop("1"))
    desk.enqueue(inputs)
    after = _truths(desk)
    assert [each["relations"] for each in after if each["image_id"] == "0"] == [[]]
    assert {each["image_id"] for each in after} == {"0", "2", "3"}


def _truths(desk: Desk) -> list[dict[str, Any]]:
    with reading(desk.database) as connection:
        query = select(truths).order_by(truths.c.enqueue_id, truths.c.image_id)
        return [dict(row) for row in connection.execute(query).mappings()]


def test_a_deleted_run_leaves_no_checks(desk: Desk, tmp_path: Path) -> None:
    desk.enqueue(judged_inputs(tmp_path / "in", images=1))
    desk.describe()
    checked(desk)
    with desk.database.begin() as connection:
        delete_run(connection, find_run(connection, None))
    left = {
        name: _rows(desk, metadata.tables[name]) for name in ("truths", "checked_pairs", "text_checks", "run_figures")
    }
    assert set(left.values()) == {0}


def test_the_commands(database_url: str, database: Engine, tmp_path: Path) -> None:
    desk = Desk(database, tmp_path / "desk")
    desk.enqueue(judged_inputs(tmp_path / "in"))
    desk.describe()
    environment = {"DATABASE_URL": database_url, "FARM_STATE_DIR": str(tmp_path / "state")}

    def run(command: Any, *arguments: str) -> str:
        result = CliRunner().invoke(command, arguments, env=environment)
        assert result.exit_code == 0, result.output
        return result.output

    assert "recall is not counted yet: producer check" in run(results_main, "check")
    done = json.loads(run(producer_main, "check", "--json").splitlines()[-1])
    assert done["texts"] > 0
    found = json.loads(run(results_main, "check", "--json"))
    assert found["flags"]["speaks_of_prompt"] == found["texts"] == done["texts"]  # this engine repeats its prompt
    assert sum(row["texts"] for row in found["predicates"].values()) == found["texts"]
    assert set(found["classes"]) == {"cat", "dog"}
    assert f"{found['recall']['stage1']['R@50']:.4f}" in run(results_main, "check")


def test_a_run_without_truth_says_so(desk: Desk, tmp_path: Path) -> None:
    inputs = judged_inputs(tmp_path / "in", relations=False, images=1)

    def forget(document: dict[str, Any]) -> None:
        for each in document["per_image_top100_candidates"]["0"]:
            each["gt_predicates"] = []

    change(inputs.stage1_files[0], forget)
    desk.enqueue(inputs)
    checked(desk)
    found = looked_at(desk)
    assert found["recall"]["truth"] is None
    assert "the inputs say of no image which relations hold" in described(found)
