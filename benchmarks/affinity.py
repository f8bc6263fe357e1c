"""Image encodings per image, and how long workers idle while pairs wait, for 1, 2, 4 and 8 workers.

    python -m benchmarks.affinity --images 200

Real workers (``celery worker``), real Redis, real SQLite; only the engine is a stand-in that computes nothing, takes
the time that a GPU would, and counts: an image costs an encoding in each process in which one of its pairs runs. So
what is measured is how the farm deals pairs out, on any machine, whatever its cores.
"""

from __future__ import annotations

import json
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

from benchmarks.enqueue import bench_request, write_inputs
from producer.enqueue import prepare, publish
from producer.progress import Progress
from tests.support.farm import Farm
from tests.support.servers import SqliteFile
from tests.support.waits import wait_for

_PAIRS_AN_IMAGE = 8


@click.command()
@click.option("--images", default=200, show_default=True)
@click.option("--workers", "numbers", default="1,2,4,8", show_default=True, help="How many at once, one after another.")
@click.option("--pairs-in-flight", default=32, show_default=True, help="Per worker.")
def main(images: int, numbers: str, pairs_in_flight: int) -> None:
    """Measure and print a table, last one JSON line.

    Example: python -m benchmarks.affinity --images 200
    """
    click.echo(f"{'workers':>8} {'pairs':>7} {'encodings per image':>20} {'idle while pairs wait':>22} {'seconds':>8}")
    found = {}
    for number in map(int, numbers.split(",")):
        figures = measure(images, number, pairs_in_flight)
        found[str(number)] = figures
        click.echo(
            f"{number:>8} {figures['pairs']:>7} {figures['encodings_per_image']:>20.3f} "
            f"{figures['idle_share']:>21.1%} {figures['seconds']:>8.1f}"
        )
    click.echo(json.dumps({"images": images, "by_workers": found}))


def measure(images: int, workers: int, pairs_in_flight: int) -> dict[str, float]:
    """One run with so many workers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Farm(folder, SqliteFile(folder / "farm.sqlite"), pairs_in_flight=pairs_in_flight) as farm:
            seconds, pairs = _run(farm, images, workers)
            counts = [json.loads(path.read_text()) for path in farm.settings.state_dir.glob("stats-*.json")]
    encodings = sum(count["encodings"] for count in counts)
    busy = sum(count["busy_s"] for count in counts)
    # Until the queue is empty a worker has no reason to idle; after it, there is nothing to do.
    waited = max(count["last_begun"] for count in counts) - min(count["first_begun"] for count in counts)
    idle = sum(max(0.0, waited - count["busy_until_s"]) for count in counts) / (waited * workers)
    return {
        "pairs": pairs,
        "encodings_per_image": round(encodings / images, 4),
        "idle_share": round(idle, 4),
        "busy_s": round(busy, 1),
        "seconds": round(seconds, 1),
    }


def _run(farm: Farm, images: int, workers: int) -> tuple[float, int]:
    """Seconds from the first message to the last result, and the number of pairs; all workers have ended then."""
    for number in range(workers):
        farm.spawn_worker(app="benchmarks.affinity_worker", worker_id=f"w{number}")
    ready = farm.settings.state_dir
    _wait(farm, lambda: len(list(ready.glob("ready-*"))) == workers, "the workers are ready", 120)
    quiet = Progress(quiet=True)
    inputs = write_inputs(farm.folder, images * _PAIRS_AN_IMAGE, _PAIRS_AN_IMAGE)
    prepared = prepare(farm.database, bench_request(farm.settings, inputs), inputs, quiet)
    began = time.perf_counter()
    publish(farm.database, farm.app, prepared.run, farm.settings.queue_shards, quiet, total=prepared.open)
    _wait(farm, lambda: farm.counts("bench").done == prepared.stored.pairs, "the pairs are done", 600)
    seconds = time.perf_counter() - began
    for worker in farm.workers:
        worker.signal(signal.SIGTERM)
    for worker in farm.workers:
        worker.wait()
    return seconds, prepared.stored.pairs


def _wait(farm: Farm, condition: Callable[[], bool], what: str, seconds: float) -> None:
    try:
        wait_for(condition, what, seconds, unless=lambda: not all(worker.alive for worker in farm.workers))
    except TimeoutError as error:
        raise click.ClickException(f"{error}\n{farm.workers[0].said[-2000:]}") from None


if __name__ == "__main__":
    main()
