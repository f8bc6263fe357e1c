"""An enqueue's pairs put into a run: compared with what is there, in bulk."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, bindparam, func, select, update

from app.database import shared_rows, tally_rows
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
    to_verify: int = 0  # asked before, but not whether their relations hold
    differences: list[str] = field(default_factory=list)  # in the user's words, as many as are shown
    kinds: Counter[str] = field(default_factory=Counter)  # what differs -> pairs

    @property
    def pairs(self) -> int:
        """Pairs of these inputs."""
        return self.new + self.unchanged + self.changed + self.to_check + self.to_verify


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
    store = _Store(connection, run, source_id)
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


@dataclass
class _Compared:
    """A known pair beside what a source says of it now."""

    pair: Pair
    row: Any
    shared: bool  # another source owns it
    says_otherwise: bool  # than the row, the image's stamp aside
    asked: Asked | None = None  # where the request changes
    values: dict[str, Any] | None = None  # where the row does


class _Store:
    """One enqueue's comparison with what is stored, chunk by chunk."""

    def __init__(self, connection: Connection, run: Run, source_id: int) -> None:
        self._connection, self._run, self._source_id = connection, run, source_id
        self.stored = StoredPairs(source_id)
        self.delta: Counter[str] = Counter()
        sources = sources_of(connection, run)
        self._ranks = {source.id: rank for rank, source in enumerate(sources)}
        self._told_at = {source.id: source.told_at for source in sources}
        # Pairs of the version before, whose sources had no names, go to the first that holds them.
        self._named = {source.id for source in sources if source.key}
        last = select(func.coalesce(func.max(pairs.c.id), 0)).where(pairs.c.run_id == run.id)
        self._last = connection.execute(last).scalar_one()  # later ids are this enqueue's own
        self._seen = array("q")  # of the earlier ids those that are in this source, and whose owner it is
        self._seen_elsewhere = array("q")  # and those that another source owns
        self._sharing = shared_rows.are_there(connection, run)

    def chunk(self, chunk: list[Pair]) -> None:
        """Store some pairs."""
        known = self._rows(pairs.c.key.in_([pair.key_hash for pair in chunk]))
        by_key = {row.key: row for row in known}
        new = [self._values(pair) for pair in chunk if pair.key_hash not in by_key]
        compared = [self._compare(pair, by_key[pair.key_hash]) for pair in chunk if pair.key_hash in by_key]
        self._share(compared)
        self._change(compared)
        if new:
            self._connection.execute(insert(self._connection, pairs), new)
        self.stored.new += len(new)
        self.stored.predicates += sum(len(set(pair.predicates)) for pair in chunk if pair.key_hash not in by_key)
        self.delta["pairs"] += len(new)

    def remove_unseen(self) -> None:
        """Withdraw the pairs that were in this source and are not any more, unless another source holds them.

        Their texts stay for reuse.
        """
        if self._sharing:
            shared_rows.let_go(self._connection, self._source_id, {*self._seen, *self._seen_elsewhere})
        mine = and_(pairs.c.enqueue_id == self._source_id, pairs.c.id <= self._last)
        total = select(func.count()).select_from(pairs).where(pairs.c.run_id == self._run.id, mine)
        if self._connection.execute(total).scalar_one() != len(self._seen):
            seen = set(self._seen)
            gone = [row for row in self._rows(mine) if row.id not in seen]
            for start in range(0, len(gone), _ROWS_A_STATEMENT):
                self._withdraw(self._hand_over(gone[start : start + _ROWS_A_STATEMENT]))
        if self._sharing:
            shared_rows.settle(self._connection, self._run, self._ranks)

    def _withdraw(self, gone: list[Any]) -> None:
        if not gone:
            return
        for row in gone:
            self._show(row, [("no longer in the inputs", "no longer there")])
        self.stored.removed += len(gone)
        some = {row.id: Asked(row.request, None) for row in gone}
        self.delta.update(ask_otherwise(self._connection, self._run, some))
        target = withdrawn_source(self._connection, self._run)
        self._connection.execute(update(pairs).where(pairs.c.id.in_(some)).values(enqueue_id=target))

    def _hand_over(self, gone: list[Any]) -> list[Any]:
        """Give pairs that their owner let go to who spoke last of their other holders; gives back those without."""
        held = shared_rows.holders(self._connection, [row.id for row in gone]) if self._sharing else {}
        changes: list[_Compared] = []
        for row in gone:
            if row.id not in held:
                continue
            heir = max(held[row.id], key=lambda each: self._told_at[each.source_id])
            pair = Pair.from_json(heir.payload or row.payload, heir.position)
            if pair.image_path == row.payload["image_path"]:
                pair = replace(pair, image_stamp=tuple(row.payload.get("image_stamp", (0, 0))))
            changes.append(self._compare(pair, row, heir.source_id))
        self._change(changes)
        return [row for row in gone if row.id not in held]

    def _compare(self, pair: Pair, row: Any, source_id: int | None = None) -> _Compared:
        """What becomes of a known pair if a source (this one, unless another one is named) says it so."""
        taken_over, source_id = source_id is not None, source_id or self._source_id
        known = Pair.from_json(row.payload)
        pair = pair.asked_like(known)
        payload, withdrawn = pair.to_json(), row.enqueue_id not in self._ranks
        differences = [] if payload == row.payload else list(_differences(row.payload, payload))
        legacy = row.request == "" and not differences
        if legacy:
            self._bind(row.id, pair.request)
        same = legacy or row.request == pair.request
        says_otherwise = _unstamped(payload) != _unstamped(row.payload)
        shared = row.enqueue_id in self._named and row.enqueue_id != source_id
        ours = taken_over or not shared or says_otherwise  # whose version a row is, is its owner: images have roots
        if not taken_over:
            (self._seen if ours else self._seen_elsewhere).append(row.id)
        if differences and not withdrawn:
            self._show(row, differences)
        if differences and not same:
            self.stored.predicates += len(set(pair.predicates))
        if not taken_over:  # another source's pairs are none of this one's
            self.stored.changed += bool(differences)
            self.stored.unchanged += same and not differences
            self.stored.to_verify += not same and not differences and pair.verify != known.verify
            self.stored.to_check += not same and not differences and pair.verify == known.verify
        compared = _Compared(pair, row, shared=shared and not taken_over, says_otherwise=says_otherwise)
        if withdrawn or not same:
            before = pair.request if legacy else row.request
            compared.asked = Asked(None if withdrawn else before, pair.request)
        position, owner = (pair.position, source_id) if ours else (row.position, row.enqueue_id)
        if not same or legacy or (owner, position, payload) != (row.enqueue_id, row.position, row.payload):
            compared.values = self._values(pair) | {"pair": row.id, "position": position, "enqueue_id": owner}
        return compared

    def _share(self, compared: list[_Compared]) -> None:
        """Note which of these pairs another source holds as well, before their rows change."""
        held = [each for each in compared if each.shared]
        if held:
            self._sharing = True
            owners = ((each.row.id, each.row.enqueue_id, each.row.position) for each in held)
            shared_rows.share(self._connection, self._run, owners)
        if self._sharing:
            otherwise = {each.row.id: each.row.payload for each in compared if each.says_otherwise}
            shared_rows.keep_versions(self._connection, otherwise)
            places = {each.row.id: each.pair.position for each in compared}
            shared_rows.renew(self._connection, self._source_id, places)
        if held:
            mine = ((each.row.id, self._source_id, each.pair.position) for each in held)
            shared_rows.share(self._connection, self._run, mine)

    def _change(self, compared: list[_Compared]) -> None:
        asked = {each.row.id: each.asked for each in compared if each.asked}
        self.delta.update(ask_otherwise(self._connection, self._run, asked))
        if changed := [each.values for each in compared if each.values]:
            names = ("enqueue_id", "position", "image_path", "subject", "object", "payload", "request")
            change = update(pairs).where(pairs.c.id == bindparam("pair"))
            values = change.values({name: bindparam(name) for name in names})
            self._connection.execute(values, changed)

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


def _unstamped(payload: dict[str, Any]) -> dict[str, Any]:
    return payload | {"image_stamp": None}


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
