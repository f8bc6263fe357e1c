"""What an enqueue need not ask for, because the database knows the answer.

A pair whose descriptions are all known gets its result at once, copied; of the others the known ones are copied by the
worker that describes the rest. An image that nobody has read since it changed is to be checked: its content decides.
"""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import Connection, Engine, select

from app.boxes import Frame
from app.database.connection import reading
from app.database.records import Run
from app.database.result_rows import Outcome, scenes, write_outcomes
from app.database.run_rows import has_described
from app.database.schema import images, is_live, is_pending, pairs, results
from app.database.tally_rows import counts_of
from app.errors import FarmError
from app.pair import Pair
from app.prompts import Template, load_question
from app.text_keys import Scene, Wanted, copied, is_verified, known_texts, wanted_texts
from producer.texts import Texts

_PAGE = 1_000


def reuse(database: Engine, run: Run, template: Template) -> Texts | None:
    """Copy what is known of the run's pending pairs; None where there is nothing that could be known."""
    if run.model_hash is None or run.options.get("reuse") is False:
        return None
    with database.begin() as connection:
        known = counts_of(connection, run).stale or has_described(
            connection, run.model_hash, run.settings.template_hash, besides=run.id
        )
    if not known:
        return None
    texts, after = Texts(), -1
    while True:
        with database.begin() as connection:
            rows = _page(connection, run, after)
            if not rows:
                return texts
            after = rows[-1].id
            _reuse_page(connection, run, template, rows, texts)


def all_new(database: Engine, run: Run, template: Template) -> Texts:
    """The descriptions of the run's pending pairs where none of them can be known."""
    query = select(pairs.c.payload).where(pairs.c.run_id == run.id, is_pending(), is_live())
    with reading(database) as connection:
        rows = connection.execution_options(yield_per=_PAGE).execute(query).scalars()
        return Texts(new=sum(_number(Pair.from_json(payload), template) for payload in rows))


def _number(pair: Pair, template: Template) -> int:
    return len(set(pair.predicates)) if template.style == "per-predicate" else 1


def _page(connection: Connection, run: Run, after: int) -> list[Any]:
    joined = pairs.outerjoin(results, results.c.pair_id == pairs.c.id)
    joined = joined.outerjoin(images, (images.c.run_id == pairs.c.run_id) & (images.c.image_id == pairs.c.image_id))
    columns = (pairs.c.id, pairs.c.payload, pairs.c.request, results.c.descriptions, results.c.spare)
    file = (images.c.path, images.c.size, images.c.mtime_ns, images.c.sha256)
    query = select(*columns, *file).select_from(joined).where(pairs.c.run_id == run.id, pairs.c.id > after)
    return list(connection.execute(query.where(is_pending(), is_live()).order_by(pairs.c.id).limit(_PAGE)))


def _reuse_page(connection: Connection, run: Run, template: Template, rows: list[Any], texts: Texts) -> None:
    contents = _contents(connection, run, rows)
    asked: list[tuple[Any, str, list[Wanted]]] = []
    for row in rows:
        pair = Pair.from_json(row.payload)
        scene = _scene(run, pair, contents.get((row.path, row.size, row.mtime_ns)))
        try:
            wanted = wanted_texts(pair, template, run.settings, scene) if scene else []
            key = scene.key(pair) if scene else ""
        except FarmError:
            continue  # the worker says what is wrong with it
        if scene is None:
            texts.to_check += _number(pair, template)
        else:
            asked.append((row, key, wanted))
    stored = scenes(connection, {key for _, key, _ in asked})
    outcomes = []
    for row, key, wanted in asked:
        known = known_texts(wanted, [*(row.descriptions or ()), *(row.spare or ()), *stored.get(key, ())])
        distinct = {each.key for each in wanted}
        texts.reused += len(distinct & known.keys())
        texts.new += len(distinct - known.keys())
        if distinct <= known.keys() and all(_is_complete(row, each) for each in known.values()):
            outcomes.append(_copy(row, key, wanted, known, run))
    texts.copied += sum(write_outcomes(connection, outcomes, "").values()) if outcomes else 0


def _is_complete(row: Any, description: dict[str, Any]) -> bool:
    """Whether nothing is left for a worker to ask about a pair's description."""
    verify = Pair.from_json(row.payload).verify
    return verify is None or is_verified(description, load_question(verify[0]))


def _contents(connection: Connection, run: Run, rows: list[Any]) -> dict[tuple[str, int, int], str]:
    """sha256 of the images' files, by path and stamp, from whichever run's worker has read them."""
    stamps = {(row.path, row.size, row.mtime_ns): row.sha256 for row in rows if row.path is not None}
    unknown = [path for (path, _, _), digest in stamps.items() if digest is None]
    query = select(images.c.path, images.c.size, images.c.mtime_ns, images.c.sha256)
    query = query.where(images.c.path.in_(unknown), images.c.sha256.is_not(None), images.c.run_id != run.id)
    found = {(path, size, mtime): digest for path, size, mtime, digest in connection.execute(query)} if unknown else {}
    return {stamp: digest or found[stamp] for stamp, digest in stamps.items() if digest or stamp in found}


def _scene(run: Run, pair: Pair, digest: str | None) -> Scene | None:
    if digest is None or pair.frame is None or pair.frame_size is None or run.model_hash is None:
        return None
    pixels = run.settings.min_pixels, run.settings.max_pixels
    frame = cast(Frame, pair.frame)
    return Scene(run.model_hash, digest, frame, pair.frame_size, pixels, run.settings.template_hash)


def _copy(row: Any, scene_key: str, wanted: list[Wanted], known: dict[str, dict[str, Any]], run: Run) -> Outcome:
    descriptions = [copied(known[each.key], each) for each in wanted]
    return Outcome(
        row.id, run.uuid, row.request, attempts=0, descriptions=descriptions, scene_key=scene_key,
        provenance={"engine": "copied", "model_hash": run.model_hash},
    )  # fmt: skip
