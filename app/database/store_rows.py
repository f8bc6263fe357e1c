"""An enqueue's pairs put into a run: compared with what is there, in bulk."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, bindparam, func, select, update

from app.database import tally_rows
from app.database.dialect import insert
from app.database.pair_rows import Asked, ask_otherwise
from app.database.records import Run
from app.database.schema import failures, pairs, results, runs
from app.database.source_rows import Source, keep_images, renew_source, sources_of, withdrawn_source
from app.errors import RunError
from app.pair import Pair

_ROWS_A_STATEMENT = 2_000
_SHOWN = 8
"""Differences that are shown; all are counted."""


@dataclass
class StoredPairs:
    """What an enqueue found and stored."""

    source_id: int
    new: int = 0
    predicates: int = 0  # distinct ones of the new and changed pairs: descriptions, where each has its own
    unchanged: int = 0
    changed: int = 0  # asked otherwise than before
    removed: int = 0  # in the source before, and not any more
    to_check: int = 0  # their image's file has another size or time than before
    differences: list[str] = field(default_factory=list)  # in the user's words, as many as are shown
    kinds: Counter[str] = field(default_factory=Counter)  # what differs -> pairs

    @property
    def pairs(self) -> int:
        """Pairs of these inputs."""
        return self.new + self.unchanged + self.changed + self.to_check


def store_pairs(
    connection: Connection,
    run: Run,
    found: Iterable[Pair],
    source: Source,
    drops: dict[str, Any],
    *,
    number: int,
    accept: bool = False,
) -> StoredPairs:
    """Put an enqueue's pairs into the run; rows that say the same already are not touched.

    ``number`` is how many there are. Raises RunError, with the differences, if a pair stands in these inputs otherwise
    (predicates, boxes, image) than in the run, or has left its source, and ``accept`` is not given.
    """
    source_id = renew_source(connection, run, source, drops, number)
    store = _Store(connection, run, source_id, number)
    iterator = iter(found)
    while chunk := list(islice(iterator, _ROWS_A_STATEMENT)):
        keep_images(connection, run, source_id, source.image_root, chunk)
        store.chunk(chunk)
    store.remove_unseen()
    if store.stored.kinds and not accept:
        _refuse(run, store.stored, drops)
    tally_rows.add(connection, run.id, "", store.delta)
    total = select(func.count()).select_from(pairs).where(pairs.c.run_id == run.id).scalar_subquery()
    connection.execute(runs.update().where(runs.c.id == run.id).values(expected=total))
    return store.stored


class _Store:
    """One enqueue's comparison with what is stored, chunk by chunk."""

    def __init__(self, connection: Connection, run: Run, source_id: int, number: int) -> None:
        self._connection, self._run, self._source_id, self._number = connection, run, source_id, number
        self.stored = StoredPairs(source_id)
        self.delta: Counter[str] = Counter()
        # Pairs of the version before, whose sources had no names, go to the first that holds them.
        self._sizes = {each.id: each.pairs if each.key else 0 for each in sources_of(connection, run)}
        last = select(func.coalesce(func.max(pairs.c.id), 0)).where(pairs.c.run_id == run.id)
        self._last = connection.execute(last).scalar_one()  # later ids are this enqueue's own
        self._seen = array("q")  # of the earlier ids those that are in this source

    def chunk(self, chunk: list[Pair]) -> None:
        """Store some pairs."""
        known = self._rows(pairs.c.key.in_([pair.key_hash for pair in chunk]))
        by_key = {row.key: row for row in known}
        new = [self._values(pair) for pair in chunk if pair.key_hash not in by_key]
        asked: dict[int, Asked] = {}
        compared = [(pair, by_key[pair.key_hash]) for pair in chunk if pair.key_hash in by_key]
        changes = [values for pair, row in compared for values in self._compare(pair, row, asked)]
        self.delta.update(ask_otherwise(self._connection, self._run, asked))
        if new:
            self._connection.execute(insert(self._connection, pairs), new)
        if changes:
            names = ("enqueue_id", "position", "image_path", "subject", "object", "payload", "request")
            change = update(pairs).where(pairs.c.id == bindparam("pair"))
            self._connection.execute(change.values({name: bindparam(name) for name in names}), changes)
        self.stored.new += len(new)
        self.stored.predicates += sum(len(set(pair.predicates)) for pair in chunk if pair.key_hash not in by_key)
        self.delta["pairs"] += len(new)

    def remove_unseen(self) -> None:
        """Withdraw the pairs that were in this source and are not any more; their texts stay for reuse."""
        mine = and_(pairs.c.enqueue_id == self._source_id, pairs.c.id <= self._last)
        total = select(func.count()).select_from(pairs).where(pairs.c.run_id == self._run.id, mine)
        if self._connection.execute(total).scalar_one() == len(self._seen):
            return
        seen = set(self._seen)
        gone = [row for row in self._rows(mine) if row.id not in seen]
        for row in gone:
            self._show(row, [("no longer in the inputs", "no longer there")])
        self.stored.removed = len(gone)
        target = withdrawn_source(self._connection, self._run)
        for start in range(0, len(gone), _ROWS_A_STATEMENT):
            some = {row.id: Asked(row.request, None) for row in gone[start : start + _ROWS_A_STATEMENT]}
            self.delta.update(ask_otherwise(self._connection, self._run, some))
            self._connection.execute(update(pairs).where(pairs.c.id.in_(some)).values(enqueue_id=target))

    def _compare(self, pair: Pair, row: Any, asked: dict[int, Asked]) -> list[dict[str, Any]]:
        """What of a known pair's row must change: nothing, or its values. ``asked`` gets it if its request does."""
        draws = Pair.from_json(row.payload).draws
        if draws:
            pair = replace(pair, draws=tuple(draw for draw in draws if draw[0] in ("", *pair.predicates)))
        payload, withdrawn = pair.to_json(), row.enqueue_id not in self._sizes
        differences = [] if payload == row.payload else list(_differences(row.payload, payload))
        legacy = row.request == "" and not differences
        if legacy:
            self._bind(row.id, pair.request)
        same = legacy or row.request == pair.request
        moves = row.enqueue_id != self._source_id and (withdrawn or self._number > self._sizes[row.enqueue_id])
        ours = moves or row.enqueue_id == self._source_id
        if ours:
            self._seen.append(row.id)
        if differences and not withdrawn:
            self._show(row, differences)
        if differences:
            self.stored.changed += 1
            self.stored.predicates += 0 if same else len(set(pair.predicates))
        elif same:
            self.stored.unchanged += 1
        else:
            self.stored.to_check += 1
        if withdrawn or not same:
            before = pair.request if legacy else row.request
            asked[row.id] = Asked(None if withdrawn else before, pair.request)
        position = pair.position if ours else row.position
        if same and not legacy and not moves and payload == row.payload and position == row.position:
            return []
        values = self._values(pair) | {"pair": row.id, "position": position}
        return [values if ours else values | {"enqueue_id": row.enqueue_id}]

    def _values(self, pair: Pair) -> dict[str, Any]:
        return {
            "run_id": self._run.id,
            "enqueue_id": self._source_id,
            "key": pair.key_hash,
            "position": pair.position,
            "image_id": pair.image_id,
            "image_path": pair.image_path,
            "subject": pair.subject,
            "object": pair.object,
            "subject_id": pair.subject_id,
            "object_id": pair.object_id,
            "payload": pair.to_json(),
            "request": pair.request,
        }

    def _rows(self, condition: ColumnElement[bool]) -> list[Any]:
        columns = ("id", "key", "image_id", "subject", "object", "payload", "request", "enqueue_id", "position")
        query = select(*(pairs.c[name] for name in columns)).where(pairs.c.run_id == self._run.id, condition)
        return list(self._connection.execute(query))

    def _bind(self, pair_id: int, request: str) -> None:
        """Outcomes of the version before knew no requests; what has not changed since is what they answer."""
        for table in (results, failures):
            mine = and_(table.c.pair_id == pair_id, table.c.request == "")
            self._connection.execute(update(table).where(mine).values(request=request))

    def _show(self, row: Any, differences: list[tuple[str, str]]) -> None:
        self.stored.kinds.update({kind for kind, _ in differences})
        if len(self.stored.differences) < _SHOWN:
            told = "; ".join(text for _, text in differences)
            self.stored.differences.append(f"image {row.image_id}, ({row.subject!r}, {row.object!r}): {told}")


def _differences(before: dict[str, Any], after: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a user sees of two payloads: its kind, and what was there and is there now."""

    def told(kind: str, old: Any, new: Any) -> tuple[str, str]:
        return kind, f"{kind}: {str(old)[:200]} then, {str(new)[:200]} now"

    old, new = Pair.from_json(before), Pair.from_json(after)
    if old.predicates != new.predicates:
        yield told("predicates", ", ".join(old.predicates), ", ".join(new.predicates))
    elif old.candidates != new.candidates:
        similarities = ([each.similarity for each in pair.candidates] for pair in (old, new))
        yield told("similarities", *similarities)
    for role, box_before, box_after in (
        (f"box of {new.subject!r}", old.subject_box, new.subject_box),
        (f"box of {new.object!r}", old.object_box, new.object_box),
    ):
        if box_before != box_after:
            yield "boxes", told(role, box_before, box_after)[1]
    if (old.subject, old.object) != (new.subject, new.object):
        yield told("names", (old.subject, old.object), (new.subject, new.object))
    if old.image_path != new.image_path:
        yield told("image path", old.image_path, new.image_path)
    if (old.has_gt, old.gt_predicates) != (new.has_gt, new.gt_predicates):
        yield told("ground truth", list(old.gt_predicates), list(new.gt_predicates))


def _refuse(run: Run, stored: StoredPairs, drops: dict[str, Any]) -> None:
    counted = ", ".join(f"{kind} of {number} pairs" for kind, number in stored.kinds.most_common())
    lines = "\n".join(f"  {line}" for line in stored.differences)
    if stored.removed and (dropped := drops.get("pairs")):
        lines += "\n  dropped from these inputs: " + ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    raise RunError(
        f"these inputs are not those of run {run.name!r}: {counted}:\n{lines}\n"
        "Inputs may grow; --update takes these in their place and describes again what they change, --run gives them "
        "a run of their own"
    )
