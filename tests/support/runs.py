"""Input files of any size with tiny images, and runs put straight into a database."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from sqlalchemy import Connection, Engine, select

from app.database import schema
from app.database.claim_rows import Claimant
from app.database.records import Run, RunSettings
from app.database.result_rows import Outcome, write_outcomes
from app.database.run_rows import find_or_create_run, find_run
from app.database.schema import is_pending
from app.database.source_rows import Source
from app.database.store_rows import StoredPairs, store_pairs
from app.database.tally_rows import claimed, counts_of, recount
from app.model_identity import ModelIdentity, identify_model
from app.pair import Candidate, Pair
from app.prompts import load_template
from producer.run_request import Inputs, RunRequest

PREDICATES = ("on", "next to", "above", "has")


def write_inputs(folder: Path, images: int = 2, pairs: int = 3, predicates: int = 2) -> Inputs:
    """Both files and their images: ``images`` images of 64 x 48 with ``pairs`` pairs each.

    Half of the images are numbered, half named, and stage 1 holds them in the reverse order of the second input.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries, stage1 = [], {}
    for number in range(images):
        image_id: int | str = number + 1 if number % 2 == 0 else f"image-{number + 1}"
        Image.new("RGB", (64, 48), (37 * number % 256, 90, 200 - number % 200)).save(folder / f"{number}.png")
        objects = [
            {"id": at, "class_name": f"thing {at}", "bbox": [at, at, at + 20, at + 15]} for at in range(pairs + 1)
        ]
        entries.append({"image_id": image_id, "image_path": f"{number}.png", "objects": objects})
        stage1[str(image_id)] = [
            {
                "subject": "thing 0",
                "object": f"thing {at + 1}",
                "predicted_predicate": PREDICATES[(at + rank) % len(PREDICATES)],
                "similarity": 0.9 - rank / 10,
                "has_gt": rank == 0,
                "gt_predicates": ["on"] if rank == 0 else [],
            }
            for at in range(pairs)
            for rank in range(predicates)
        ]
    stage1 = dict(reversed(stage1.items()))
    (folder / "stage1.json").write_text(json.dumps({"per_image_top100_candidates": stage1}))
    (folder / "images.json").write_text(json.dumps(entries))
    return Inputs(folder / "stage1.json", folder / "images.json", folder)


def request_for(
    name: str = "default", model: str = "some/model", style: str = "per-predicate", **more: Any
) -> RunRequest:
    """A run request as the producer's options make it; ``more`` are settings of the run."""
    template = load_template(style)
    identity: ModelIdentity = identify_model(model)
    settings = RunSettings(
        model=identity.name,
        model_revision=None,
        model_config_hash=identity.config_hash,
        style=template.style,
        template_hash=template.hash,
        top_k=10,
        max_new_tokens=4,
        temperature=0.1,
        seed=0,
        min_pixels=None,
        max_pixels=None,
    )
    return RunRequest(name, identity, replace(settings, **more), template, {})


def pair(number: int, *, image_id: Any = None, by_id: bool = False, **changes: Any) -> Pair:
    """The pair at one place of some input; four pairs share an image unless told otherwise."""
    image = number // 4 + 1 if image_id is None else image_id
    names = (f"subject {number}", f"object {number}")
    made = Pair(
        image_id=str(image),
        image_id_json=image,
        image_path=f"{image}.jpg",
        subject=names[0],
        object=names[1],
        subject_id="1" if by_id else None,
        object_id=str(number + 2) if by_id else None,
        subject_id_json=1 if by_id else None,
        object_id_json=number + 2 if by_id else None,
        subject_obj={"class_name": names[0], "bbox": [1, 2, 3, 4], "id": 1},
        object_obj={"class_name": names[1], "bbox": [5, 6, 7, 8], "id": number + 2},
        candidates=(Candidate("on", 0.75), Candidate("above", 0.5)),
        has_gt=number % 2 == 0,
        gt_predicates=("on",) if number % 2 == 0 else (),
        extent=(7.0, 8.0),
        position=number,
    )
    return replace(made, **changes)


@dataclass(frozen=True)
class StoredRun:
    """A run in a database, and the ids of those of its pairs that are pending, in the order of the inputs."""

    run: Run
    ids: list[int]
    stored: StoredPairs


def source_of(name: str = "a", root: Path = Path("/images")) -> Source:
    """A source by the name of its files."""
    return Source((f"/{name}.json",), f"/{name}-images.json", root, (), {})


def store_run(
    database: Engine,
    pairs: Sequence[Pair],
    name: str = "default",
    *,
    source: Source | None = None,
    update: bool = False,
    **settings: Any,
) -> StoredRun:
    """Put a run with these pairs into the database, as an enqueue does; ``update`` takes what differs."""
    source = source or source_of()
    request = request_for(name, **settings)
    wanted = request.as_run(Inputs(Path("a"), Path("b"), source.image_root))
    with database.begin() as connection:
        run = find_or_create_run(connection, wanted, update=update)
        new = counts_of(connection, run).pairs == 0
        number = len({each.key for each in pairs})
        stored = store_pairs(connection, run, pairs, source, {"dropped": {}}, number=number, accept=update or new)
        mine = schema.pairs.c.run_id == run.id
        named = schema.pairs.c.key.in_([each.key_hash for each in pairs])
        query = select(schema.pairs.c.id).where(mine, named, is_pending())
        ids = connection.execute(query.order_by(schema.pairs.c.position, schema.pairs.c.id)).scalars().all()
        run = find_run(connection, name)
    return StoredRun(run, list(ids), stored)


def described(texts: Sequence[str] = ("a text", "another")) -> list[dict[str, Any]]:
    """Descriptions as a worker stores them."""
    return [{"text": text, "finish_reason": "stop", "tokens": 2, "prompt_tokens": 9} for text in texts]


def request_of(connection: Connection, pair_id: int) -> str:
    """What is asked of a stored pair at present."""
    return str(connection.execute(select(schema.pairs.c.request).where(schema.pairs.c.id == pair_id)).scalar_one())


def run_of(connection: Connection, pair_id: int) -> str:
    """The uuid of a stored pair's run."""
    joined = schema.runs.join(schema.pairs, schema.pairs.c.run_id == schema.runs.c.id)
    query = select(schema.runs.c.uuid).select_from(joined).where(schema.pairs.c.id == pair_id)
    return str(connection.execute(query).scalar_one())


def describe(
    connection: Connection, pair_id: int, texts: Sequence[str] = ("a text", "another"), worker: str = "w", **more: Any
) -> bool:
    """Write the result of a pair as it is asked at present, as a worker does; says whether it was kept."""
    asked = {"run": run_of(connection, pair_id), "request": request_of(connection, pair_id)}
    values: dict[str, Any] = asked | {"attempts": 1, "seconds": 1.0} | more
    outcome = Outcome(pair_id, descriptions=described(texts), **values)
    return write_outcomes(connection, [outcome], worker)[pair_id]


def fail(
    connection: Connection, pair_id: int, reason: str = "image missing", detail: str = "a.jpg", attempts: int = 1
) -> bool:
    """Write the failure of a pair as it is asked at present; says whether it was kept."""
    run, request = run_of(connection, pair_id), request_of(connection, pair_id)
    outcome = Outcome(pair_id, run, request, attempts, reason=reason, detail=detail)
    return write_outcomes(connection, [outcome], "w")[pair_id]


def claimant(worker: str, **terms: Any) -> Claimant:
    """Who claims, on terms that suit most tests."""
    return Claimant(worker=worker, **({"lease_s": 60.0, "max_crashes": 3} | terms))


class Standing(NamedTuple):
    """A run's pairs by what became of them."""

    expected: int
    done: int
    failed: int
    claimed: int


def standing(connection: Connection, run: Run) -> Standing:
    """How a run stands by its counters, which are what a look at every pair gives."""
    counts = counts_of(connection, run)
    looked = recount(connection, run)
    assert counts.pairs == looked.pairs, (counts, looked)
    assert (counts.done, counts.failed, counts.stale) == (looked.done, looked.failed, looked.stale), (counts, looked)
    return Standing(counts.pairs, counts.done, counts.failed, claimed(connection, run))
