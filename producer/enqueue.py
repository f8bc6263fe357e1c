"""From the input files to a queue: read, store, publish. In this order, so that a bad file changes nothing."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from celery import Celery
from sqlalchemy import Connection, Engine

from app.database.connection import reading
from app.database.records import Run
from app.database.result_rows import OUTSIDE_REASONS, forget_failures
from app.database.run_rows import all_runs, find_or_create_run
from app.database.store_rows import StoredPairs, store_pairs
from app.database.tally_rows import counts_of
from app.database.truth_rows import TruthRow, keep_truths
from app.errors import EnqueueError
from app.inputs.box_census import BoxCensus
from app.inputs.drops import HINTS, Drops
from app.inputs.reader import read_pairs
from app.inputs.truth import ImageTruth
from app.pair import Pair
from app.prompts import Template
from app.queue.keys import run_lists
from app.queue.publisher import Broker
from app.queue.window import Window, window_of
from producer.prepared import Prepared
from producer.progress import Progress
from producer.reuse import all_new, reuse
from producer.run_request import Inputs, RunRequest
from producer.texts import Texts

_PATIENCE_S = 300.0  # with a database or a broker that is away
_BYTES_A_PAIR = 4_200  # that SQLite takes for a pair with six descriptions (benchmarks.scale)


def prepare(database: Engine, request: RunRequest, inputs: Inputs, progress: Progress) -> Prepared:
    """Read the files to their end, then store their pairs in one transaction.

    Raises InputError, RunError, EnqueueError; the database then is as it was.
    """
    drops, census = Drops(), BoxCensus(inputs.box_format)
    with _spool() as spool, _spool() as truths:
        number = _read(inputs, request.settings.top_k, drops, census, (spool, truths), progress)
        account = {"dropped": {str(reason): count for reason, count in drops.counts.items()}, **drops.as_dict()}
        if not number and drops.candidates_read:
            raise EnqueueError(_all_dropped(account))
        _refuse_full_disk(database, number, force=request.force)
        source = inputs.source()
        with database.begin() as connection, progress.phase("storing pairs", number) as advance:
            wanted = request.as_run(inputs)
            before = next((each for each in all_runs(connection) if each.name == request.name), None)
            run = find_or_create_run(connection, wanted, update=request.update, priority=request.priority)
            pairs = _pairs(spool, advance, None if request.verify is None else (request.verify, 0))
            stored = store_pairs(
                connection,
                run,
                pairs,
                source,
                account,
                number=number,
                accept=request.update or _is_new(connection, run),
            )
            keep_truths(connection, run, stored.source_id, _truths(truths))
            resent = len(forget_failures(connection, run, OUTSIDE_REASONS))
    texts = reuse(database, run, request.template)
    with reading(database) as connection:
        counts = counts_of(connection, run)
    if texts is None:
        begun = counts.pending > stored.new + stored.changed  # by an earlier enqueue
        texts = all_new(database, run, request.template) if begun else _of_stored(stored, request.template)
    replaced = before if before is not None and before.uuid != run.uuid else None
    pairs_dropped = sum(count for reason, count in drops.counts.items() if reason.unit == "pairs")
    return Prepared(
        run,
        stored,
        counts,
        resent,
        account["dropped"],
        account["examples"],
        pairs_dropped,
        texts,
        census.warning(),
        replaced,
    )


def publish(
    database: Engine, app: Celery, run: Run, shards: int, progress: Progress, *, total: int, replaced: Run | None = None
) -> int:
    """Publish the first window of the run's pending pairs, images together, and what was given out before; gives how
    many. Workers top it up from there. What the queue holds of a run that this one ``replaced`` is deleted.
    """
    broker = Broker(app, patience_s=_PATIENCE_S)
    if replaced is not None:
        broker.patiently(lambda: broker.drop(run_lists(replaced.model_key, replaced.uuid, shards)))
    window = Window(database, broker, shards, patience_s=_PATIENCE_S)
    with progress.phase("publishing pairs", total) as advance:
        waiting = broker.patiently(lambda: window.waiting(run))
        published, _ = window.top_up(run, max(0, window_of(run) - waiting), advance)
        returned = sum(window.return_orphans([run]).values())
        advance(returned)
    broker.close()
    return published + returned


def _of_stored(stored: StoredPairs, template: Template) -> Texts:
    return Texts(new=stored.predicates if template.style == "per-predicate" else stored.new + stored.changed)


def _is_new(connection: Connection, run: Run) -> bool:
    """Whether the run has no pair yet: nothing can differ from what is not there."""
    return counts_of(connection, run).pairs == 0


def _all_dropped(account: dict[str, Any]) -> str:
    told = ", ".join(f"{count} {reason}" for reason, count in account["dropped"].items())
    example = next((lines[0] for lines in account["examples"].values() if lines), "")
    such = f" (such as {example})" if example else ""
    hints = "".join(
        f"\n  {hint}" for hint in dict.fromkeys(HINTS[each] for each in HINTS if each in account["dropped"])
    )
    return f"nothing is left to describe, everything was dropped: {told}{such}{hints}"


def _refuse_full_disk(database: Engine, number: int, *, force: bool) -> None:
    """Raise EnqueueError if the pairs' results cannot fit on the disk of the SQLite file."""
    if database.dialect.name != "sqlite" or not database.url.database or force:
        return
    folder = Path(database.url.database).parent
    free, needed = shutil.disk_usage(folder).free, number * _BYTES_A_PAIR
    if needed > free:
        raise EnqueueError(
            f"{folder}: {number:,} pairs need about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; make room, "
            "use another --state-dir, or say --force"
        )


def _read(
    inputs: Inputs, top_k: int, drops: Drops, census: BoxCensus, spools: tuple[IO[str], IO[str]], progress: Progress
) -> int:
    """Spool pairs and true relations, so that the database is locked for the storing alone and not for the reading."""
    count, (spool, truths) = 0, spools

    def keep_truth(truth: ImageTruth) -> None:
        truths.write(json.dumps([truth.image_id, truth.relations, truth.proposed]) + "\n")

    with progress.phase("reading pairs", None) as advance:
        pairs = read_pairs(
            inputs.stage1_files,
            inputs.images,
            image_root=inputs.image_root,
            image_prefixes=inputs.image_prefixes,
            census=census,
            top_k=top_k,
            drops=drops,
            truths=keep_truth,
        )
        for count, pair in enumerate(pairs, 1):  # noqa: B007 - the count is the answer
            spool.write(json.dumps([pair.position, pair.to_json()]) + "\n")
            advance(1)
    return count


def _pairs(spool: IO[str], advance: Any, verify: tuple[str, int] | None) -> Iterator[Pair]:
    spool.seek(0)
    for line in spool:
        advance(1)
        position, value = json.loads(line)
        yield replace(Pair.from_json(value, position), verify=verify)


def _truths(spool: IO[str]) -> Iterator[TruthRow]:
    spool.seek(0)
    for line in spool:
        yield TruthRow(*json.loads(line))


@contextmanager
def _spool() -> Iterator[IO[str]]:
    with tempfile.SpooledTemporaryFile(max_size=64 << 20, mode="w+", encoding="ascii") as spool:
        yield spool
