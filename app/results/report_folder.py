"""A run as a folder that a browser opens without a server: pictures, boxes, descriptions, failures and drops.

The data are scripts (``data/0.js`` …), because a page that is opened from a file may load nothing else. All text is in
JSON with ASCII escapes; the page shows it as text, never as markup.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine

from app.commands import software_version
from app.database.connection import reading
from app.database.records import Run
from app.database.result_rows import every_pair
from app.database.run_rows import find_run
from app.database.source_rows import last_account, sources_of
from app.database.tally_rows import counts_of
from app.errors import ExportError
from app.images import ImageRoot, Prefixes
from app.pair import Pair
from app.results.thumbnails import Thumbnail, thumbnail

_PAGE = Path(__file__).with_name("page")
_MARK = "farm-report.json"  # a folder that holds it was written by a report, and may be replaced by one
_PAIRS_A_SCRIPT = 500


@dataclass(frozen=True)
class ReportOptions:
    """What goes into a report."""

    run_name: str | None = None
    most_pairs: int = 10_000
    picture: int = 480  # the longer side of a picture, in pixels
    image_root: Path | None = None  # of this host, in place of the sources' own
    image_prefixes: Prefixes = ()


@dataclass(frozen=True)
class Reported:
    """What a report holds and what it does not."""

    run: str
    path: Path
    pairs: int
    left_out: int
    pictures: int
    without_picture: int  # images


def write_report(database: Engine, out: Path, options: ReportOptions) -> Reported:
    """Write the folder; it appears under its name when it is complete.

    A folder that is there is replaced if it is empty or a report. Raises RunError and ExportError.
    """
    _refuse_other(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".part"))
        try:
            with reading(database) as connection:
                run = find_run(connection, options.run_name)
                reported = _Writer(connection, run, fresh, options).write(out)
            fresh.chmod(0o755)
            if out.exists():
                shutil.rmtree(out)
            fresh.rename(out)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        raise ExportError(f"{error.filename or out}: {error.strerror or error}") from None
    return reported


def _refuse_other(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ExportError(f"{out} is no folder; name a new one")
    if out.is_dir() and any(out.iterdir()) and not (out / _MARK).is_file():
        raise ExportError(f"{out} holds other files than a report's; name a new folder")


class _Writer:
    def __init__(self, connection: Connection, run: Run, folder: Path, options: ReportOptions) -> None:
        self._connection, self._run, self._folder, self._options = connection, run, folder, options
        self._images: list[dict[str, Any]] = []
        self._numbers: dict[tuple[str, int], int] = {}  # (image id, source) -> its number
        self._sources = {source.id: source for source in sources_of(connection, run)}

    def write(self, out: Path) -> Reported:
        """Write all files; ``out`` is what the folder will be called."""
        for name in ("data", "pictures"):
            (self._folder / name).mkdir()
        rows = every_pair(self._connection, self._run)
        shown, scripts = 0, 0
        records = (self._record(row) for row in islice(rows, self._options.most_pairs))
        while some := list(islice(records, _PAIRS_A_SCRIPT)):
            self._script(f"data/{scripts}.js", "add", some)
            shown, scripts = shown + len(some), scripts + 1
        total = counts_of(self._connection, self._run).pairs
        self._script("data/index.js", "begin", self._about(scripts, shown, total))
        for path in _PAGE.iterdir():
            shutil.copyfile(path, self._folder / path.name)
        (self._folder / _MARK).write_text(json.dumps({"software": software_version(), "run": self._run.name}) + "\n")
        pictures = sum(image["picture"] for image in self._images)
        return Reported(self._run.name, out, shown, total - shown, pictures, len(self._images) - pictures)

    def _about(self, scripts: int, shown: int, total: int) -> dict[str, Any]:
        counts, settings = counts_of(self._connection, self._run), self._run.settings
        account = last_account(self._connection, self._run)
        return {
            "run": self._run.name,
            "state": self._run.state if counts.pending else "finished",
            "model": settings.model,
            "style": settings.style,
            "counts": {"pairs": total, "shown": shown, "done": counts.done, "failed": counts.failed,
                       "pending": counts.pending, "texts": counts.texts},
            "dropped": [
                {"unit": unit, "reason": reason, "count": count, "examples": account["examples"].get(reason, [])}
                for unit in ("pairs", "candidates", "images")
                for reason, count in account.get(unit, {}).items()
            ],
            "images": self._images,
            "scripts": scripts,
        }  # fmt: skip

    def _script(self, name: str, function: str, value: object) -> None:
        text = json.dumps(value, separators=(",", ":"))  # ASCII: no line separator, nothing that ends a script
        (self._folder / name).write_text(f"farm.{function}({text});\n", encoding="ascii")

    def _record(self, row: Any) -> dict[str, Any]:
        pair = Pair.from_json(row.payload)
        record: dict[str, Any] = {
            "image": self._image(pair, row.enqueue_id),
            "names": [pair.subject, pair.object],
            "boxes": [pair.subject_box, pair.object_box],
            "gt": list(pair.gt_predicates) if pair.has_gt else [],
            "candidates": [[each.predicate, each.similarity] for each in pair.candidates],
        }
        if pair.subject_id is not None:
            record["ids"] = [pair.subject_id_json, pair.object_id_json]
        if row.descriptions is not None:
            record["texts"] = list(map(_text, row.descriptions))
        elif row.reason is not None:
            record |= {"failed": row.reason, "detail": row.detail}
        return record

    def _image(self, pair: Pair, source: int) -> int:
        key = pair.image_id, source
        if key not in self._numbers:
            number = self._numbers[key] = len(self._images)
            found = thumbnail(self._places(source, pair.image_path), pair.frame, self._options.picture)
            width, height = pair.frame_size or (found.frame_size if found else None) or pair.extent
            image = {"id": pair.image_id_json, "path": pair.image_path, "size": [width, height]}
            self._images.append({**image, "picture": self._picture(number, found)})
        return self._numbers[key]

    def _picture(self, number: int, found: Thumbnail | None) -> bool:
        if found is not None:
            (self._folder / "pictures" / f"{number}.jpg").write_bytes(found.jpeg)
        return found is not None

    def _places(self, source_id: int, path: str) -> Iterator[tuple[ImageRoot, str]]:
        """Where this host may have an image: under its own root, by its own prefixes, where the producer saw it."""
        here, source = self._options, self._sources[source_id]
        if here.image_root is not None:
            yield ImageRoot(here.image_root, here.image_prefixes), path
        if here.image_prefixes:
            yield ImageRoot(Path(source.image_root), here.image_prefixes), os.path.join(source.image_root, path)
        yield ImageRoot(Path(source.image_root), source.image_prefixes), path


def _text(description: dict[str, Any]) -> dict[str, Any]:
    shown = {"text": description["text"], "finish": description["finish_reason"], "tokens": description["tokens"]}
    return shown | ({"reused": True} if description.get("reused") else {})


def describe_report(done: Reported) -> Iterator[str]:
    """Lines on what was written and what was not."""
    yield f"{done.path / 'index.html'}: {done.pairs} pairs of run {done.run}, {done.pictures} pictures"
    if done.left_out:
        yield f"{done.left_out} pairs are left out; --limit shows more"
    if done.without_picture:
        where = "say where they are by FARM_IMAGE_ROOT or FARM_IMAGE_PREFIXES"
        yield f"{done.without_picture} images have no picture here: {where}"
