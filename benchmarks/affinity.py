"""Image encodings per image, and how long workers idle while pairs wait, for 1, 2, 4 and 8 workers.

    python -m benchmarks.affinity --images 200

Real workers (``celery worker``), real Redis, real SQLite; only the engine is a stand-in that computes nothing, takes
the time that a GPU would, and counts: an image costs an encoding in each process in which one of its pairs runs. So
what is measured is how the farm deals pairs out, on any machine, whatever its cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from app.database.connection import open_database, reading
from app.database.result_rows import count_outcomes
from app.queue.celery_app import embedded_broker, ensure_broker, make_app
from app.settings import Settings, load_settings
from benchmarks.enqueue import bench_request, write_inputs
from producer.enqueue import prepare, publish
from producer.progress import Progress

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
        settings = load_settings(state_dir=folder, pairs_in_flight=pairs_in_flight)
        ensure_broker(settings)
        processes = []
        try:
            open_database(settings).dispose()  # workers wait for its schema
            processes = [_start(settings, folder, number) for number in range(workers)]
            _wait(lambda: len(list(folder.glob("ready-*"))) == workers, processes, 120)
            seconds, pairs = _run(settings, folder, images, processes)
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(30)
            embedded_broker(settings).stop()
        counts = [json.loads(path.read_text()) for path in folder.glob("stats-*.json")]
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


def _start(settings: Settings, folder: Path, number: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **settings.environment(), "FARM_WORKER_ID": f"w{number}"}
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.affinity_worker", "worker", "--loglevel", "WARNING",
               "--hostname", f"w{number}@%h", "--without-gossip", "--without-mingle"]  # fmt: skip
    with (folder / f"log-{number}").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def _run(settings: Settings, folder: Path, images: int, processes: list[subprocess.Popen[bytes]]) -> tuple[float, int]:
    quiet = Progress(quiet=True)
    database = open_database(settings)
    inputs = write_inputs(folder, images * _PAIRS_AN_IMAGE, _PAIRS_AN_IMAGE)
    prepared = prepare(database, bench_request(settings, inputs), inputs, quiet)
    began = time.perf_counter()
    publish(database, make_app(settings), prepared.run, settings.queue_shards, quiet, total=prepared.open)

    def done() -> bool:
        with reading(database) as connection:
            return count_outcomes(connection, prepared.run).done == prepared.pairs

    _wait(done, processes, 600)
    return time.perf_counter() - began, prepared.pairs


def _wait(condition: object, processes: list[subprocess.Popen[bytes]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
            raise click.ClickException("the workers did not do their work; see their logs")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
