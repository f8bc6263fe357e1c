"""From two input files to a queue: read, store, publish. In this order, so that a bad file changes nothing."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from celery import Celery
from sqlalchemy import Engine

from app.database.connection import reading
from app.database.pair_rows import open_pairs, store_pairs
from app.database.result_rows import count_outcomes
from app.database.run_rows import Run, RunSettings, find_or_create_run
from app.inputs.drops import Drops
from app.inputs.reader import read_pairs
from app.model_identity import ModelIdentity
from app.pair import Pair
from app.prompts import Template
from app.queue.celery_app import all_queues
from app.queue.publisher import Broker, Publisher, producing_key
from producer.progress import Progress

_CHUNK = 5_000  # pairs published at once
_PATIENCE_S = 300.0  # with a database that is away
_HOLD_S = 0.5  # between two looks at a queue that is full
_PRODUCING_S = 60  # how long workers believe that a silent producer is still at it


@dataclass(frozen=True)
class Inputs:
    """The two files of a run, and where their images are."""

    stage1: Path
    images: Path
    image_root: Path

    def fingerprints(self) -> dict[str, Any]:
        """Path, size and content hash of both files."""
        return {name: _fingerprint(path) for name, path in (("stage1", self.stage1), ("images", self.images))}


@dataclass(frozen=True)
class RunRequest:
    """The run that is asked for: its name, what makes its text, what is only reported."""

    name: str
    model: ModelIdentity
    settings: RunSettings
    template: Template
    options: dict[str, Any]

    def as_run(self, inputs: Inputs) -> Run:
        """As a row that has no id yet."""
        return Run(
            id=0,
            uuid="",
            name=self.name,
            settings=self.settings,
            template={"text": self.template.text, "style": self.template.style},
            model_key=self.model.key,
            image_root=str(inputs.image_root.resolve()),
            expected=0,
            options=self.options,
            created_at=0.0,
        )


@dataclass(frozen=True)
class Prepared:
    """A run whose pairs are stored; nothing of it need be published yet."""

    run: Run
    enqueue_id: int
    pairs: int  # of these inputs
    already_done: int
    failed: int
    dropped: dict[str, int]  # reason -> count
    examples: dict[str, list[str]]  # reason -> where, for some

    @property
    def open(self) -> int:
        """Pairs of these inputs that have neither a result nor a failure."""
        return self.pairs - self.already_done - self.failed

    def report(self, enqueued: int) -> dict[str, Any]:
        """What ``producer enqueue --json`` prints."""
        return {
            "run": self.run.name,
            "pairs": self.pairs,
            "enqueued": enqueued,
            "already_done": self.already_done,
            "failed": self.failed,
            "dropped": self.dropped,
        }


def prepare(database: Engine, request: RunRequest, inputs: Inputs, progress: Progress) -> Prepared:
    """Read both files to their end, then store their pairs in one transaction.

    Raises InputError, RunError; the database then is as it was.
    """
    drops = Drops()
    with _spool() as spool:
        number = _read(inputs, request.settings.top_k, drops, spool, progress)
        account = {"dropped": {str(reason): count for reason, count in drops.counts.items()}, **drops.as_dict()}
        fingerprints = inputs.fingerprints()
        with database.begin() as connection, progress.phase("storing pairs", number) as advance:
            run = find_or_create_run(connection, request.as_run(inputs))
            pairs = _pairs(spool, advance)
            stored = store_pairs(connection, run, pairs, fingerprints, account)
            counts = count_outcomes(connection, run, stored.enqueue_id)
    return Prepared(
        run,
        stored.enqueue_id,
        stored.pairs,
        stored.already_done,
        counts.failed,
        account["dropped"],
        account["examples"],
    )


def publish(
    database: Engine,
    app: Celery,
    run: Run,
    shards: int,
    progress: Progress,
    *,
    total: int,
    enqueue_id: int | None = None,
    max_queued: int | None = None,
) -> int:
    """Publish the run's open pairs, images together; gives how many.

    Holds back while ``max_queued`` messages wait.
    """
    broker = Broker(app)
    publisher = Publisher(broker, run, shards)
    queues = all_queues(run.model_key, shards)
    chunk = min(_CHUNK, max_queued or _CHUNK)
    published = 0
    with progress.phase("publishing pairs", total) as advance:
        for page in open_pairs(database, run, enqueue_id=enqueue_id, page=chunk, patience_s=_PATIENCE_S):
            _announce(broker, run)
            while max_queued is not None and broker.patiently(lambda: broker.waiting(queues)) + len(page) > max_queued:
                time.sleep(_HOLD_S)
                _announce(broker, run)
            published += publisher.publish(page)
            advance(len(page))
    broker.patiently(lambda: broker.redis.delete(producing_key(run)))
    broker.close()
    return published


def republish(database: Engine, app: Celery, run: Run, shards: int, progress: Progress) -> int:
    """Publish all open pairs of a run, whichever inputs they came with."""
    with reading(database) as connection:
        counts = count_outcomes(connection, run)
    total = counts.expected - counts.done - counts.failed
    return publish(database, app, run, shards, progress, total=total)


def _announce(broker: Broker, run: Run) -> None:
    """Tell workers that the queue is not lost but still being filled."""
    broker.patiently(lambda: broker.redis.set(producing_key(run), 1, ex=_PRODUCING_S))


def _read(inputs: Inputs, top_k: int, drops: Drops, spool: IO[str], progress: Progress) -> int:
    """Spool the pairs, so that the database is locked for the storing alone and not for the reading."""
    count = 0
    with progress.phase("reading pairs", None) as advance:
        pairs = read_pairs(inputs.stage1, inputs.images, image_root=inputs.image_root, top_k=top_k, drops=drops)
        for count, pair in enumerate(pairs, 1):  # noqa: B007 - the count is the answer
            spool.write(json.dumps([pair.position, pair.to_json()]) + "\n")
            advance(1)
    return count


def _pairs(spool: IO[str], advance: Any) -> Iterator[Pair]:
    spool.seek(0)
    for line in spool:
        advance(1)
        position, value = json.loads(line)
        yield Pair.from_json(value, position)


@contextmanager
def _spool() -> Iterator[IO[str]]:
    with tempfile.SpooledTemporaryFile(max_size=64 << 20, mode="w+", encoding="ascii") as spool:
        yield spool


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": str(path.resolve()), "bytes": path.stat().st_size, "sha256": digest}
