"""The true relations of a run's images, as its sources say them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, exists, select

from app.database.dialect import insert
from app.database.records import Run
from app.database.schema import WITHDRAWN, enqueues, is_live, pairs, truths
from app.pair import Pair

_ROWS_A_STATEMENT = 500
_IMAGES_A_READ = 200


class TruthRow(NamedTuple):
    """One image's truth as one source says it; the lists are those of ``app.inputs.truth.ImageTruth``."""

    image_id: str
    relations: list[list[Any]] | None
    proposed: list[list[Any]]


class JudgedImage(NamedTuple):
    """An image with the truth of each source that has one, and its pairs in the order of the inputs."""

    truths: list[TruthRow]
    pairs: list[tuple[int, Pair]]


def keep_truths(connection: Connection, run: Run, source_id: int, found: Iterable[TruthRow]) -> None:
    """Put a source's truth in the place of what it said before; rows that say the same are not touched."""
    seen: set[str] = set()
    iterator = iter(found)
    while chunk := list(islice(iterator, _ROWS_A_STATEMENT)):
        rows = {row.image_id: row for row in chunk}
        seen.update(rows)
        mine = and_(truths.c.enqueue_id == source_id, truths.c.image_id.in_(rows))
        known = {row.image_id: (row.relations, row.proposed) for row in connection.execute(select(truths).where(mine))}
        values = [
            {"enqueue_id": source_id, "run_id": run.id, **row._asdict()}
            for row in rows.values()
            if known.get(row.image_id) != (row.relations, row.proposed)
        ]
        if values:
            statement = insert(connection, truths)
            renewed = {name: statement.excluded[name] for name in ("relations", "proposed")}
            statement = statement.on_conflict_do_update(index_elements=["enqueue_id", "image_id"], set_=renewed)
            connection.execute(statement, values)
    before = connection.execute(select(truths.c.image_id).where(truths.c.enqueue_id == source_id)).scalars()
    gone = [image_id for image_id in before if image_id not in seen]
    for start in range(0, len(gone), _ROWS_A_STATEMENT):
        some = truths.c.image_id.in_(gone[start : start + _ROWS_A_STATEMENT])
        connection.execute(truths.delete().where(truths.c.enqueue_id == source_id, some))


def has_relations(connection: Connection, run: Run) -> bool:
    """Whether the second input of any of the run's sources says which relations hold, be it of one image."""
    stated = exists().where(truths.c.run_id == run.id, truths.c.relations.is_not(None), truths.c.relations != [])
    return bool(connection.execute(select(stated)).scalar_one())


def judged_images(connection: Connection, run: Run) -> Iterator[JudgedImage]:
    """The run's images that have a truth, a few hundred at a time in memory."""
    last: str | None = None
    while True:
        query = select(truths.c.image_id).distinct().where(truths.c.run_id == run.id)
        if last is not None:
            query = query.where(truths.c.image_id > last)
        some = list(connection.execute(query.order_by(truths.c.image_id).limit(_IMAGES_A_READ)).scalars())
        if not some:
            return
        last = some[-1]
        yield from _images(connection, run, some)


def _images(connection: Connection, run: Run, image_ids: list[str]) -> Iterator[JudgedImage]:
    said: dict[str, list[TruthRow]] = defaultdict(list)
    rows = select(truths).join(enqueues, enqueues.c.id == truths.c.enqueue_id)
    rows = rows.where(truths.c.run_id == run.id, truths.c.image_id.in_(image_ids), enqueues.c.key != WITHDRAWN)
    for row in connection.execute(rows.order_by(truths.c.enqueue_id)):
        said[row.image_id].append(TruthRow(row.image_id, row.relations, row.proposed))
    found: dict[str, list[tuple[int, Pair]]] = defaultdict(list)
    query = select(pairs.c.id, pairs.c.image_id, pairs.c.payload, pairs.c.position)
    query = query.where(pairs.c.run_id == run.id, pairs.c.image_id.in_(image_ids), is_live())
    for row in connection.execute(query.order_by(pairs.c.position, pairs.c.id)):
        found[row.image_id].append((row.id, Pair.from_json(row.payload, row.position)))
    for image_id in image_ids:
        yield JudgedImage(said[image_id], found[image_id])
