"""Sources: what an enqueue read, with the root of its images; and the images themselves, told apart by their files.

The same two input files are one source, however often they are enqueued. An image of a run belongs to one file: two
sources that give different files to one id are refused.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, and_, bindparam, or_, select, update

from app.database.dialect import insert, now
from app.database.records import Run
from app.database.schema import WITHDRAWN, enqueues, images
from app.errors import RunError
from app.pair import Pair


@dataclass(frozen=True)
class Source:
    """Two input files and where their images are."""

    stage1: tuple[str, ...]  # resolved paths
    input_data: str
    image_root: Path
    image_prefixes: tuple[tuple[str, str], ...]
    fingerprints: dict[str, Any]

    @property
    def key(self) -> str:
        """32 hexadecimal digits over what names the source: the paths of its files."""
        text = "\n".join((*sorted(self.stage1), "", self.input_data))
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


@dataclass(frozen=True)
class StoredSource:
    """A row of the table."""

    id: int
    key: str | None
    pairs: int  # as of its last enqueue
    told_at: float  # when that was, in seconds since 1970
    image_root: str
    image_prefixes: tuple[tuple[str, str], ...]
    inputs: dict[str, Any]

    @property
    def input_data(self) -> str:
        """The path of its second input."""
        return str((self.inputs.get("images") or {}).get("path") or self.id)


def renew_source(connection: Connection, run: Run, source: Source, drops: dict[str, Any], number: int) -> int:
    """The source's id, its row made or brought up to date; ``number`` is how many pairs it holds."""
    values = {
        "inputs": source.fingerprints,
        "pairs": number,
        "drops": drops,
        "created_at": now(connection),
        "image_root": str(source.image_root.resolve()),
        "image_prefixes": [list(prefix) for prefix in source.image_prefixes],
    }
    mine = and_(enqueues.c.run_id == run.id, enqueues.c.key == source.key)
    found = connection.execute(update(enqueues).where(mine).values(values).returning(enqueues.c.id)).scalar()
    if found is None:
        values |= {"run_id": run.id, "key": source.key}
        found = connection.execute(enqueues.insert().values(values).returning(enqueues.c.id)).scalar_one()
    return int(found)


def sources_of(connection: Connection, run: Run) -> list[StoredSource]:
    """The run's sources, the one with most pairs first."""
    query = select(enqueues).where(enqueues.c.run_id == run.id)
    found = [_as_source(row, run) for row in connection.execute(query).mappings()]
    live = [source for source in found if source.key != WITHDRAWN]
    return sorted(live, key=lambda source: (-source.pairs, source.key or "", source.id))


def sources_in_order(connection: Connection, run: Run) -> list[list[int]]:
    """The ids of the run's sources in groups, each of one order of pairs, as an export has them.

    Sources of the same second input share its order; of several second inputs that of the largest source comes first.
    """
    ordered: dict[str, list[int]] = {}
    for source in sources_of(connection, run):
        ordered.setdefault(source.input_data, []).append(source.id)
    return list(ordered.values())


def withdrawn_source(connection: Connection, run: Run) -> int:
    """The id of the source of pairs that left the inputs, made where it is not there yet."""
    mine = and_(enqueues.c.run_id == run.id, enqueues.c.key == WITHDRAWN)
    found = connection.execute(select(enqueues.c.id).where(mine)).scalar()
    if found is None:
        values = {"run_id": run.id, "key": WITHDRAWN, "inputs": {}, "pairs": 0, "drops": {}, "created_at": 0.0}
        found = connection.execute(enqueues.insert().values(values).returning(enqueues.c.id)).scalar_one()
    return int(found)


def keep_images(connection: Connection, run: Run, source_id: int, root: Path, found: Iterable[Pair]) -> None:
    """Note which file each image of these pairs is, and how it is stamped.

    Raises RunError if another source of the run has a different file for one of them; both are named.
    """
    wanted = {pair.image_id: pair for pair in found}
    query = select(images).where(images.c.run_id == run.id, images.c.image_id.in_(wanted))
    known = {row["image_id"]: row for row in connection.execute(query).mappings()}
    rows = [_image_row(run, source_id, root, pair) for pair in wanted.values()]
    new = [row for row in rows if row["image_id"] not in known]
    changed = [row for row in rows if row["image_id"] in known and _differs(row, known[row["image_id"]])]
    for row in changed:
        before = known[row["image_id"]]
        if before["enqueue_id"] != source_id and not _same_file(row, before):
            raise RunError(
                f"image {row['image_id']!r} is {before['path']} in one source of run {run.name!r} and {row['path']} in "
                "this one. Two files cannot be one image: use another name by --run"
            )
    if new:
        connection.execute(insert(connection, images).on_conflict_do_nothing(), new)
    if changed:
        mine = and_(images.c.run_id == run.id, images.c.image_id == bindparam("image"))
        renewed: dict[str, Any] = {
            name: bindparam(name) for name in ("enqueue_id", "path", "size", "mtime_ns", "sha256")
        }
        rows = [{**row, "image": row.pop("image_id"), "sha256": None} for row in changed]
        connection.execute(update(images).where(mine).values(renewed), rows)


def note_contents(connection: Connection, run_id: int, contents: dict[str, tuple[int, int, str]]) -> None:
    """Keep what a worker read: image id -> bytes, time of change (ns), sha256; only where the file is still that one.

    The time is not compared: it may be another on the worker's host.
    """
    for image_id, (size, _, digest) in contents.items():
        mine = and_(images.c.run_id == run_id, images.c.image_id == image_id, images.c.size == size)
        unknown = or_(images.c.sha256.is_(None), images.c.sha256 != digest)
        connection.execute(update(images).where(mine, unknown).values(sha256=digest))


def last_account(connection: Connection, run: Run) -> dict[str, Any]:
    """What the run's last enqueue dropped, as ``Drops.as_dict`` says, and ``dropped``: reason -> count."""
    query = select(enqueues.c.drops).where(enqueues.c.run_id == run.id, enqueues.c.created_at > 0)
    newest = query.order_by(enqueues.c.created_at.desc(), enqueues.c.id.desc()).limit(1)
    return dict(connection.execute(newest).scalar_one_or_none() or {})


def _as_source(row: Any, run: Run) -> StoredSource:
    prefixes = tuple((old, new) for old, new in row["image_prefixes"] or ())
    root = row["image_root"] or run.image_root
    return StoredSource(row["id"], row["key"], row["pairs"], row["created_at"], root, prefixes, row["inputs"])


def _image_row(run: Run, source_id: int, root: Path, pair: Pair) -> dict[str, Any]:
    path = os.path.join(os.path.abspath(root), pair.image_path)
    size, mtime_ns = pair.image_stamp
    # Half of a surrogate pair fits no database; the escape is for comparing and reading alone.
    readable = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return {
        "run_id": run.id,
        "image_id": pair.image_id,
        "enqueue_id": source_id,
        "path": readable,
        "size": size,
        "mtime_ns": mtime_ns,
    }


def _differs(row: dict[str, Any], known: Any) -> bool:
    return any(row[name] != known[name] for name in ("path", "size", "mtime_ns"))


def _same_file(row: dict[str, Any], known: Any) -> bool:
    """Whether two paths lead to one file, or to copies that nobody changed."""
    if row["path"] == known["path"] or (row["size"], row["mtime_ns"]) == (known["size"], known["mtime_ns"]):
        return True
    try:
        return os.path.samefile(row["path"], known["path"])
    except OSError:
        return False
