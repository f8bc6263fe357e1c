"""The farm end to end, one worker shared by these tests: from two files to the published JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sqlalchemy import select, update

from app.database.claim_rows import claim_pair
from app.database.connection import reading
from app.database.records import QueuedPair
from app.database.result_rows import failed_pairs, forget_failures
from app.database.run_rows import find_run
from app.database.schema import claims, pairs, results
from app.queue.keys import PREFIX, TASK
from app.queue.publisher import Broker, Publisher
from producer.enqueue import prepare, publish
from producer.progress import Progress
from tests.app.results.test_export import check
from tests.support.farm import Farm
from tests.support.runs import claimant, request_for, write_inputs
from tests.support.waits import wait_for


def exported(farm: Farm, name: str, style: str = "per-predicate") -> list[dict[str, Any]]:
    """The run's published results, checked."""
    return check(farm.published(name), style)


def rows(farm: Farm, name: str) -> list[Any]:
    with reading(farm.database) as connection:
        run = find_run(connection, name)
        return list(connection.execute(select(results).where(results.c.run_id == run.id)))


def test_two_files_become_the_published_json(shared_farm: Farm, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path, images=3, pairs=3, predicates=2)
    assert shared_farm.enqueue(inputs, "whole") == 9
    assert shared_farm.wait_done("whole") == (9, 9, 0, 0)
    found = exported(shared_farm, "whole")
    assert [result["image_id"] for result in found] == [1] * 3 + ["image-2"] * 3 + [3] * 3
    assert [result["object"] for result in found] == ["thing 1", "thing 2", "thing 3"] * 3
    assert all(one["generated_description"] for result in found for one in result["stage2_generated"])
    row = rows(shared_farm, "whole")[0]
    assert (row.attempts, row.finished_at >= row.started_at) == (1, True)
    assert {"text", "finish_reason", "tokens", "prompt_tokens", "key", "predicate"} == set(row.descriptions[0])
    assert row.provenance["engine"]


def test_a_second_enqueue_of_what_is_done_publishes_nothing(shared_farm: Farm, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path, images=1, pairs=2)
    shared_farm.enqueue(inputs, "twice")
    shared_farm.wait_done("twice")
    before = rows(shared_farm, "twice")
    assert shared_farm.enqueue(inputs, "twice") == 0
    assert rows(shared_farm, "twice") == before


def test_a_run_in_the_pair_style_has_one_text_a_pair(shared_farm: Farm, tmp_path: Path) -> None:
    shared_farm.enqueue(write_inputs(tmp_path, images=1, pairs=2), "reasoned", style="per-pair")
    shared_farm.wait_done("reasoned")
    assert len(exported(shared_farm, "reasoned", "per-pair")) == 2
    assert [len(row.descriptions) for row in rows(shared_farm, "reasoned")] == [1, 1]


def test_equal_predicates_are_generated_once_and_stand_twice(shared_farm: Farm, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path, images=1, pairs=1, predicates=1)
    (stage1,) = inputs.stage1_files
    document = json.loads(stage1.read_text())
    candidates = document["per_image_top100_candidates"]["1"]
    candidates.append(candidates[0] | {"similarity": 0.1})
    stage1.write_text(json.dumps(document))
    shared_farm.enqueue(inputs, "repeated")
    shared_farm.wait_done("repeated")
    (result,) = exported(shared_farm, "repeated")
    first, second = result["stage2_generated"]
    assert first["generated_description"] == second["generated_description"]
    assert (first["similarity"], second["similarity"]) == (0.9, 0.1)


def test_garbage_and_foreign_and_old_messages_do_not_end_the_worker(shared_farm: Farm, tmp_path: Path) -> None:
    farm = shared_farm
    quiet = Progress(quiet=True)
    inputs = write_inputs(tmp_path, images=4, pairs=2)
    prepared = prepare(farm.database, request_for("sane", model=farm.settings.model), inputs, quiet)
    run = prepared.run
    publisher = Publisher(Broker(farm.app), run, farm.settings.queue_shards)
    queue = publisher.queue_of("1")
    sound = json.loads(publisher.message(10**9, queue))
    unknown = sound | {"headers": sound["headers"] | {"task": "someone.elses.task"}}
    pickled = sound | {"content-type": "application/x-python-serialize", "body": "gASVBQAAAAAAAACMAWGULg=="}
    envelopes = map(json.dumps, (sound, unknown, pickled, sound | {"body": "!"}))
    strange: list[bytes | str] = [b"\xff\xfe", b"[1, 2]", b"{}", *envelopes]
    farm.redis.lpush(PREFIX + queue, *strange)
    odd: list[list[Any]] = [[], ["no uuid", "no id"], [run.uuid, -1], [run.uuid, 2**80], [run.uuid, True], [{}, []]]
    for arguments in odd:
        farm.app.send_task(TASK, args=arguments, queue=queue, routing_key=queue)
    publish(farm.database, farm.app, run, farm.settings.queue_shards, quiet, total=8)
    assert farm.wait_done("sane") == (8, 8, 0, 0)
    wait_for(lambda: farm.redis.llen(PREFIX + queue) == 0, "the queue is drained")
    assert farm.workers[0].alive


def test_a_message_delivered_many_times_makes_one_row(shared_farm: Farm, tmp_path: Path) -> None:
    farm = shared_farm
    inputs = write_inputs(tmp_path, images=2, pairs=2)
    farm.enqueue(inputs, "copies", max_new_tokens=60)
    publisher = Publisher(Broker(farm.app), farm.run("copies"), farm.settings.queue_shards)
    with reading(farm.database) as connection:
        query = select(pairs.c.id, pairs.c.image_id).where(pairs.c.run_id == farm.run("copies").id)
        copies = [QueuedPair(*row) for row in connection.execute(query)]
    for _ in range(3):
        publisher.publish(copies)
    assert farm.wait_done("copies") == (4, 4, 0, 0)
    assert [row.attempts for row in rows(farm, "copies")] == [1] * 4


def test_a_lost_queue_is_filled_again_by_the_workers(shared_farm: Farm, tmp_path: Path) -> None:
    farm = shared_farm
    farm.enqueue(write_inputs(tmp_path, images=4, pairs=4), "emptied", max_new_tokens=40)
    farm.wait_begun("emptied")
    farm.redis.flushall()
    assert farm.wait_done("emptied") == (16, 16, 0, 0)


def test_a_restarted_broker_is_consumed_again(shared_farm: Farm, tmp_path: Path) -> None:
    farm = shared_farm
    farm.enqueue(write_inputs(tmp_path, images=4, pairs=4), "restart", max_new_tokens=40)
    farm.wait_begun("restart")
    farm.broker.stop()
    farm.broker.start()
    assert farm.wait_done("restart") == (16, 16, 0, 0)
    assert farm.workers[0].alive


def test_what_cannot_be_done_fails_with_its_reason_and_is_done_once_it_is_mended(
    shared_farm: Farm, tmp_path: Path
) -> None:
    farm = shared_farm
    inputs = write_inputs(tmp_path, images=3, pairs=2)
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])  # its header is whole
    farm.enqueue(inputs, "mended")
    assert farm.wait_done("mended") == (6, 4, 2, 0)
    with reading(farm.database) as connection:
        failures = failed_pairs(connection, farm.run("mended"), 10)
    assert {(failure["image_id"], failure["reason"]) for failure in failures} == {("image-2", "image unreadable")}
    assert len(exported(farm, "mended")) == 4
    assert farm.enqueue(inputs, "mended") == 0  # a plain second enqueue leaves a pair's own failures alone
    (tmp_path / "1.png").write_bytes(whole)
    assert farm.enqueue(inputs, "mended") <= 2  # but another file is another request; a worker's sweep may come first
    assert farm.wait_done("mended") == (6, 6, 0, 0)


def test_a_failure_that_is_retried_is_one_more_attempt(shared_farm: Farm, tmp_path: Path) -> None:
    farm = shared_farm
    inputs = write_inputs(tmp_path, images=3, pairs=1)
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    farm.enqueue(inputs, "retried")
    assert farm.wait_done("retried") == (3, 2, 1, 0)
    (tmp_path / "1.png").write_bytes(whole)
    with farm.database.begin() as connection:
        assert len(forget_failures(connection, farm.run("retried"))) == 1
    shards, quiet = farm.settings.queue_shards, Progress(quiet=True)
    published = publish(farm.database, farm.app, farm.run("retried"), shards, quiet, total=1)
    assert published in (0, 1)  # by a worker's sweep, or here
    assert farm.wait_done("retried") == (3, 3, 0, 0)
    assert [row.attempts for row in rows(farm, "retried")] == [1] * 3


def test_absolute_paths_are_stored_and_found_relative_to_the_runs_root(shared_farm: Farm, tmp_path: Path) -> None:
    farm = shared_farm
    inputs = write_inputs(tmp_path, images=1, pairs=1)
    images = json.loads(inputs.images.read_text())
    images[0]["image_path"] = str(tmp_path / images[0]["image_path"])
    inputs.images.write_text(json.dumps(images))
    farm.enqueue(inputs, "absolute")
    assert farm.wait_done("absolute").done == 1
    with reading(farm.database) as connection:
        of_run = pairs.c.run_id == find_run(connection, "absolute").id
        assert connection.execute(select(pairs.c.image_path).where(of_run)).scalars().all() == ["0.png"]


def test_two_runs_at_once_are_not_mixed(shared_farm: Farm, tmp_path: Path) -> None:
    farm = shared_farm
    inputs = write_inputs(tmp_path, images=2, pairs=3)
    for name, seed in (("one", 1), ("two", 2)):
        farm.enqueue(inputs, name, seed=seed, temperature=2.0, max_new_tokens=12)
    for name in ("one", "two"):
        assert farm.wait_done(name) == (6, 6, 0, 0)
    texts = [[one["generated_description"] for result in exported(farm, name) for one in result["stage2_generated"]]
             for name in ("one", "two")]  # fmt: skip
    assert texts[0] != texts[1]


def test_a_run_of_another_model_stays_in_its_own_queues(shared_farm: Farm, tmp_path: Path) -> None:
    farm = shared_farm
    quiet = Progress(quiet=True)
    prepared = prepare(farm.database, request_for("foreign", model="other/model"), write_inputs(tmp_path), quiet)
    publish(farm.database, farm.app, prepared.run, farm.settings.queue_shards, quiet, total=6)
    farm.enqueue(write_inputs(tmp_path / "own", images=1), "own")
    farm.wait_done("own")
    assert farm.counts("foreign") == (6, 0, 0, 0)


def test_a_claim_of_a_vanished_process_is_taken_over(shared_farm: Farm, tmp_path: Path) -> None:
    farm = shared_farm
    inputs = write_inputs(tmp_path, images=1, pairs=2)
    prepared = prepare(farm.database, request_for("taken", model=farm.settings.model), inputs, Progress(quiet=True))
    with reading(farm.database) as connection:
        query = select(pairs.c.id).where(pairs.c.run_id == prepared.run.id)
        ids = connection.execute(query).scalars().all()
    for pair_id in ids:  # started by a process that is gone, and no message anywhere
        claim_pair(farm.database, (prepared.run.uuid, pair_id), claimant("gone"))
    with farm.database.begin() as connection:
        connection.execute(update(claims).where(claims.c.worker == "gone").values(lease_until=1.0))
    assert farm.wait_done("taken") == (2, 2, 0, 0)
    assert [row.attempts for row in rows(farm, "taken")] == [2, 2]
