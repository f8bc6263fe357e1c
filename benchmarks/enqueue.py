"""Pairs per second into Redis: the producer's bulk publication alongside a plain ``apply_async`` loop, in one run.

    python -m benchmarks.enqueue --pairs 100000

A real server (the embedded one), real messages, one process. Printed alongside it is all of ``producer enqueue``
(reading both files, storing the pairs in SQLite, publishing), which is slower than publishing alone.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

import click

from app.database.connection import open_database
from app.database.records import QueuedPair, Run
from app.queue.celery_app import embedded_broker, ensure_broker, make_app
from app.queue.keys import TASK, shard_lists
from app.queue.publisher import Broker, Publisher
from app.settings import Settings, load_settings
from producer.enqueue import prepare, publish
from producer.options import RunOptions
from producer.progress import Progress
from producer.run_request import Inputs, RunRequest

_PAIRS_AN_IMAGE = 16  # as in the older pipeline's run over 2,000 images


@click.command()
@click.option("--pairs", default=100_000, show_default=True, help="Published in bulk.")
@click.option("--plain", default=5_000, show_default=True, help="Published one by one.")
def main(pairs: int, plain: int) -> None:
    """Measure both ways and print the ratio.

    Example: python -m benchmarks.enqueue --pairs 100000
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(state_dir=Path(folder))
        ensure_broker(settings)
        try:
            figures = measure(settings, Path(folder), pairs, plain)
        finally:
            embedded_broker(settings).stop()
    for name, value in figures.items():
        click.echo(f"{name:32} {value:>12,.1f}")
    click.echo(json.dumps(figures))


def measure(settings: Settings, folder: Path, pairs: int, plain: int) -> dict[str, float]:
    """Pairs per second: of a plain loop, of bulk publication, of the whole ``producer enqueue``."""
    inputs = write_inputs(folder, pairs)
    database = open_database(settings)
    quiet = Progress(quiet=True)
    began = time.perf_counter()
    prepared = prepare(database, bench_request(settings, inputs), inputs, quiet)
    app = make_app(settings)
    publish(database, app, prepared.run, settings.queue_shards, quiet, total=prepared.open)
    whole = prepared.stored.pairs / (time.perf_counter() - began)
    bulk = bulk_rate(settings, prepared.run, pairs)
    loop = loop_rate(settings, prepared.run, plain)
    return {
        "apply_async_pairs_per_s": round(loop, 1),
        "bulk_pairs_per_s": round(bulk, 1),
        "bulk_over_apply_async": round(bulk / loop, 1),
        "whole_enqueue_pairs_per_s": round(whole, 1),
    }


def bench_request(settings: Settings, inputs: Inputs) -> RunRequest:
    """A run with the defaults of ``producer enqueue``."""
    given = dict.fromkeys(RunOptions.__dataclass_fields__)
    values = {"stage1_results": tuple(map(str, inputs.stage1_files)), "input_data": inputs.images,
              "run_name": "bench", "top_k": 10, "max_new_tokens": 512, "temperature": 0.1, "seed": 0, "priority": 0,
              "image_prefixes": (), "update": False, "reuse": True, "force": False}  # fmt: skip
    return RunOptions(**{**given, **values}).request(settings, {})  # type: ignore[arg-type]


def bulk_rate(settings: Settings, run: Run, number: int) -> float:
    """Publishing alone, as the producer does it."""
    broker = Broker(make_app(settings))
    broker.redis.flushall()
    pairs = [QueuedPair(index, str(index // _PAIRS_AN_IMAGE)) for index in range(number)]
    began = time.perf_counter()
    Publisher(broker, run, settings.queue_shards).publish(pairs)
    seconds = time.perf_counter() - began
    waiting = broker.waiting(shard_lists(run.model_key, run.uuid, settings.queue_shards))
    if waiting != number:
        raise click.ClickException(f"{waiting} of {number} messages arrived")
    return number / seconds


def loop_rate(settings: Settings, run: Run, number: int) -> float:
    """Publishing by Celery's own ``apply_async``, one connection kept open."""
    app = make_app(settings)

    @app.task(name=TASK)
    def task(run_uuid: str, pair_id: int) -> None:
        """Stands for the workers' task, which a producer does not import."""

    queue = shard_lists(run.model_key, run.uuid, 1)[0]
    with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
        task.apply_async((run.uuid, 0), queue=queue, producer=producer)
        began = time.perf_counter()
        for index in range(number):
            task.apply_async((run.uuid, index), queue=queue, producer=producer)
        return number / (time.perf_counter() - began)


def write_inputs(folder: Path, pairs: int, pairs_an_image: int = _PAIRS_AN_IMAGE) -> Inputs:
    """The two input files of so many pairs, six candidates each, over copies of one image."""
    from PIL import Image

    Image.new("RGB", (640, 480)).save(folder / "image.jpg")
    images, candidates = [], {}
    for image in range(-(-pairs // pairs_an_image)):
        objects = [{"id": index, "class_name": f"thing {index}", "bbox": [index, index, 100 + index, 200 + index]}
                   for index in range(pairs_an_image + 1)]  # fmt: skip
        os.link(folder / "image.jpg", folder / f"{image}.jpg")
        images.append({"image_id": image, "image_path": f"{image}.jpg", "objects": objects})
        candidates[str(image)] = [
            {"subject": "thing 0", "object": f"thing {other}", "predicted_predicate": predicate, "similarity": 0.5}
            for other in range(1, pairs_an_image + 1)
            for predicate in ("on", "near", "behind", "above", "under", "holding")
        ]
    (folder / "images.json").write_text(json.dumps(images))
    (folder / "stage1.json").write_text(json.dumps({"per_image_top100_candidates": candidates}))
    return Inputs(folder / "stage1.json", folder / "images.json", folder)


if __name__ == "__main__":
    main()
