"""Nothing lost: a run under kills, restarts, duplicates, garbage and what its owner does, compared with a calm one.

    python -m benchmarks.faults --kills 40 --seed 1 --database postgresql

Prints a log of the faults and last one JSON line. ``generated_again`` counts the attempts at pairs that were started
before, by a trigger on the claims table; ``in_flight`` is what was in flight at the kills, at the restarts of Redis, at
SIGTERM and at hosts' trouble, and what an owner's step (update, cancel, pause, delete) made vain; it bounds the former.
``hung`` are pairs that came to no end, ``longest_stall_s`` is the longest time without a new outcome.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from tests.support.drawn_inputs import DrawnInputs, draw_inputs
from tests.support.farm import Farm
from tests.support.faults import KINDS, Fault, Scene, kill_a_worker, kill_the_producer
from tests.support.hosts import HOST_TROUBLE
from tests.support.servers import open_server
from tests.support.steering import STEPS

_GIVE_UP_S = 240.0  # without any progress
_LOOK_S = 0.2
_LAST_FAULT_AT = 0.92  # of the pairs
_PAIRS_IN_FLIGHT = 12  # of each worker
_TEXTS = ("--max-new-tokens", "64")  # long enough that kills hit them

Key = tuple[str, str, str]


@dataclass
class Watch:
    """Follows a farm's progress."""

    farm: Farm
    pairs: int
    ended: int = 0
    longest_stall_s: float = 0.0
    _changed: float = 0.0

    def wait(self, ended: int) -> bool:
        """Until so many pairs have ended; False if nothing moves any more."""
        self._changed = self._changed or time.monotonic()
        while True:
            now_ended, now = self.farm.ended(), time.monotonic()
            if now_ended != self.ended:  # fewer, where changed inputs ask for some once more
                if self.ended:
                    self.longest_stall_s = max(self.longest_stall_s, now - self._changed)
                self.ended, self._changed = now_ended, now
            if self.ended >= ended:
                return True
            if now - self._changed > _GIVE_UP_S:
                self.longest_stall_s = max(self.longest_stall_s, now - self._changed)
                return False
            time.sleep(_LOOK_S)


@dataclass
class Finished:
    """What a run left."""

    results: list[dict[str, Any]]
    failures: dict[Key, str]


@click.command()
@click.option("--kills", default=40, show_default=True, type=click.IntRange(min=1), help="Number of faults.")
@click.option("--seed", default=0, show_default=True, help="Of the inputs, the kinds of fault and their moments.")
@click.option("--pairs", default=1_000, show_default=True, type=click.IntRange(min=12))
@click.option("--workers", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--database", type=click.Choice(["sqlite", "postgresql"]), default="sqlite", show_default=True)
@click.option("--model", default="small", show_default=True, help="The shipped model, or a folder.")
@click.option("--quick", is_flag=True, help="60 pairs, 2 workers, 6 faults, whatever else is said.")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Keep logs and databases here.")
def main(
    kills: int, seed: int, pairs: int, workers: int, database: str, model: str, quick: bool, keep: Path | None
) -> None:
    """Compare a disturbed run with an undisturbed one; exit status 1 if anything is lost, doubled or different."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # its servers and workers end with it
    if quick:
        kills, pairs, workers = 6, 60, 2
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as name:
        folder = (keep or Path(name)).resolve()
        inputs = draw_inputs(folder / "inputs", pairs, seed=seed)
        report = compare_runs(folder, inputs, kills=kills, seed=seed, workers=workers, database=database, model=model)
    click.echo(json.dumps(report))
    if report["lost"] or report["doubled"] or report["different"] or report["hung"]:
        raise SystemExit(1)


def compare_runs(
    folder: Path, inputs: DrawnInputs, *, kills: int, seed: int, workers: int, database: str, model: str
) -> dict[str, Any]:
    """Both runs, and the report of the last line."""
    # Another folder means another path in no text: only names and pixels reach the prompts.
    with _farm(folder / "calm", database, model) as farm:
        farm.start_launcher(workers)
        calm = _calm_run(farm, inputs)
    with _farm(folder / "disturbed", database, model) as farm:
        farm.start_launcher(workers)
        disturbed, counts = _disturbed_run(farm, inputs, kills, random.Random(seed))
    return {"faults": kills, "pairs": inputs.pairs, **difference(calm, disturbed), **counts, "seed": seed,
            "database": database}  # fmt: skip


def _farm(folder: Path, database: str, model: str) -> Farm:
    return Farm(folder, open_server(database, folder), model=model, pairs_in_flight=_PAIRS_IN_FLIGHT)


def _calm_run(farm: Farm, inputs: DrawnInputs) -> Finished:
    started = time.monotonic()
    farm.produce(inputs, *_TEXTS)
    if not Watch(farm, inputs.pairs).wait(inputs.pairs):
        raise click.ClickException("the undisturbed run came to a stop")
    click.echo(f"undisturbed: {inputs.pairs} pairs in {time.monotonic() - started:.0f} s")
    _stop_launcher(farm)
    return Finished(farm.published()["results"], farm.failures())


def _disturbed_run(
    farm: Farm, inputs: DrawnInputs, kills: int, numbers: random.Random
) -> tuple[Finished, dict[str, float]]:
    started = time.monotonic()
    # Held back, so that the producer lives for most of the run and can be killed in it.
    scene = Scene(farm, inputs, (*_TEXTS, "--max-queued", str(max(20, inputs.pairs // 8))), numbers)
    farm.produce(inputs, *scene.options)
    watch, in_flight = Watch(farm, inputs.pairs), 0
    moments = sorted(numbers.uniform(0.03, _LAST_FAULT_AT) * inputs.pairs for _ in range(kills))
    for moment, fault in zip(moments, plan(kills, numbers), strict=True):
        watch.wait(max(int(moment), min(watch.ended + 1, inputs.pairs)))
        time.sleep(numbers.uniform(0.0, 1.0))
        done = fault(scene)
        in_flight += done.in_flight
        click.echo(f"{time.monotonic() - started:7.1f} s, {watch.ended:5} pairs ended: {done.what}")
    watch.wait(inputs.pairs)
    click.echo(f"disturbed: {watch.ended} of {inputs.pairs} pairs in {time.monotonic() - started:.0f} s")
    again = farm.generated_again()
    status = _stop_launcher(farm)
    click.echo(f"the launcher ended with status {status}")
    hung = inputs.pairs - min(watch.ended, inputs.pairs)
    counts = {
        "hung": hung,
        "generated_again": again,
        "in_flight": in_flight,
        "longest_stall_s": round(watch.longest_stall_s, 1),
    }
    return Finished(farm.published()["results"], farm.failures()), counts


def _stop_launcher(farm: Farm) -> int:
    assert farm.launcher is not None
    return farm.launcher.stop(90)


def plan(number: int, numbers: random.Random) -> list[Callable[[Scene], Fault]]:
    """So many faults: a worker's kill first, each other kind and step of a run's owner at least once if there is room,
    then mostly kills.
    """
    rest = [*KINDS[1:], *STEPS, *HOST_TROUBLE]
    numbers.shuffle(rest)
    chosen = [KINDS[0], *rest][:number]
    more = [*KINDS, *STEPS, *HOST_TROUBLE, *[kill_a_worker] * 8, *[kill_the_producer] * 2]
    chosen += [numbers.choice(more) for _ in range(number - len(chosen))]
    numbers.shuffle(chosen)
    return chosen


def difference(calm: Finished, disturbed: Finished) -> dict[str, int]:
    """Pairs lost, doubled and different; a failure counts like a result, its reason like a text."""
    wanted = {_key(record): record for record in calm.results}
    counted = Counter(_key(record) for record in disturbed.results)
    found = {_key(record): record for record in disturbed.results}
    lost = (set(wanted) | set(calm.failures)) - set(found) - set(disturbed.failures)
    blamed = set(wanted) & set(disturbed.failures)
    changed = {key for key in set(wanted) & set(found) if wanted[key] != found[key]}
    others = {key for key, reason in calm.failures.items() if disturbed.failures.get(key, reason) != reason}
    for key in sorted(changed):
        click.echo(f"different: {json.dumps(wanted[key])}\n     from: {json.dumps(found[key])}")
    for key in sorted(lost | blamed):
        click.echo(f"lost: {key} {disturbed.failures.get(key, '')}")
    return {
        "lost": len(lost | blamed),
        "doubled": sum(number - 1 for number in counted.values()) + len(set(found) & set(disturbed.failures)),
        "different": len(changed | others) + (list(wanted) != list(found) and not (lost or blamed)),
    }


def _key(record: dict[str, Any]) -> Key:
    return str(record["image_id"]), str(record["subject_id"]), str(record["object_id"])


if __name__ == "__main__":
    main()
