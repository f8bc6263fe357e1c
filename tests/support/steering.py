"""What the owner of a run does to it while it goes on, by the commands; in the end the run is what it was.

``producer redo`` is not among them: it draws other texts.
Each says, as ``in_flight``, how many attempts it may have made vain.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from tests.support.faults import Fault, Scene

_HOLD_S = 120.0  # a command's longest time


def update_inputs(scene: Scene) -> Fault:
    """Other predicates for an image, taken with ``--update``, and taken back a moment later."""
    stage1 = scene.inputs.stage1
    before, document = stage1.read_bytes(), json.loads(stage1.read_bytes())
    image, candidates = scene.numbers.choice(sorted(document["per_image_top100_candidates"].items()))
    for candidate in candidates:
        candidate["predicted_predicate"] += " almost"
    stage1.write_text(json.dumps(document))
    try:
        taken = _enqueue(scene)
        time.sleep(scene.numbers.uniform(0.0, 3.0))
    finally:
        stage1.write_bytes(before)
    back = _enqueue(scene)
    pairs = len({(each["subject_id"], each["object_id"]) for each in candidates})
    return Fault(f"image {image}: {pairs} pairs updated (exit {taken}), and back (exit {back})", 2 * pairs)


def cancel_and_resume(scene: Scene) -> Fault:
    """A run is ended where it is, and goes on after all."""
    return _away(scene, "cancel")


def pause_and_resume(scene: Scene) -> Fault:
    """A run is held, and goes on."""
    return _away(scene, "pause")


def delete_another_run(scene: Scene) -> Fault:
    """A run of other requests beside ours, deleted while workers have its pairs."""
    farm, name = scene.farm, f"passing {scene.numbers.randrange(10**9)}"
    made = farm.produce(scene.inputs, "--run", name, "--max-new-tokens", "6", "--priority", "9").wait(_HOLD_S)
    time.sleep(scene.numbers.uniform(0.0, 3.0))
    # Pairs of a deleted run hand their ids on in SQLite: all of its attempts may count as repeated ones.
    started = (
        "SELECT count(*) FROM started JOIN pairs ON pairs.id = started.pair_id "
        "JOIN runs ON runs.id = pairs.run_id WHERE runs.name = :name"
    )
    attempts = farm.number(started, name=name) + farm.in_flight()
    gone = farm.command("delete", name, "--yes").wait(_HOLD_S)
    return Fault(f"run {name}: enqueued (exit {made}), {attempts} attempts, deleted (exit {gone})", attempts)


def _away(scene: Scene, how: str) -> Fault:
    farm, in_flight = scene.farm, scene.farm.in_flight()
    held = farm.command(how, "default").wait(_HOLD_S)
    time.sleep(scene.numbers.uniform(0.0, 4.0))
    resumed = farm.command("resume", "default").wait(_HOLD_S)
    return Fault(f"run: {how} (exit {held}), resume (exit {resumed})", in_flight)


def _enqueue(scene: Scene) -> int:
    return scene.farm.produce(scene.inputs, *scene.options, "--update").wait(_HOLD_S)


STEPS: tuple[Callable[[Scene], Fault], ...] = (
    update_inputs, cancel_and_resume, pause_and_resume, delete_another_run,
)  # fmt: skip
