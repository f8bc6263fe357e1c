"""The life of runs in one process, without a queue: files are enqueued, a test's engine describes, rows tell."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select

from app.database.connection import reading
from app.database.pair_rows import pending_after
from app.database.records import Run
from app.database.run_rows import find_run
from app.database.schema import pairs
from app.model_identity import identify_model
from app.prompts import Language
from app.results.export import export
from app.settings import load_settings
from producer.enqueue import prepare
from producer.prepared import Prepared
from producer.progress import Progress
from producer.run_request import Inputs
from tests.support.fake_engine import FakeEngine, text_of
from tests.support.runs import Standing, request_for, standing
from tests.support.waits import wait_for
from workers.engine.api import Completion, Request
from workers.identity import WorkerIdentity
from workers.pair_runner import PairRunner

MODEL = "small"  # its weights are here: its hash is known


def tell_what_is_seen(request: Request) -> Completion:
    """A text that tells all that it was made from: the colour of the image's corner, the prompt, the random stream."""
    colour = request.image.load().getpixel((0, 0))
    sampling = request.sampling
    stream = f" [{sampling.seed}]" if sampling.temperature else ""
    return Completion(f"{colour}: {text_of(request)}{stream}", "stop", min(3, sampling.max_new_tokens), 7)


class Desk:
    """One database and one worker process, as far as rows can tell."""

    def __init__(self, database: Engine, folder: Path, **settings: Any) -> None:
        self.database, self._folder = database, folder
        self.engine = FakeEngine(tell_what_is_seen)
        self.settings = load_settings(state_dir=folder, model=MODEL, **({"wait_images_s": 0} | settings))

    def enqueue(
        self,
        inputs: Inputs,
        name: str = "default",
        *,
        update: bool = False,
        reuse: bool = True,
        verify: Language | None = None,
        **settings: Any,
    ) -> Prepared:
        """What ``producer enqueue`` stores."""
        request = request_for(name, model=MODEL, **({"temperature": 0.0} | settings))
        request = replace(request, update=update, options={"reuse": reuse}, verify=verify)
        return prepare(self.database, request, inputs, Progress(quiet=True))

    @contextmanager
    def worker(self, name: str = "w", **settings: Any) -> Iterator[PairRunner]:
        """A worker process."""
        model = identify_model(MODEL)
        assert model.hash is not None
        identity = WorkerIdentity(name, tuple(model.keys_served), model.hash, {"engine": "of a test"})
        given = self.settings.model_copy(update=settings)
        runner = PairRunner(given, self.database, self.engine, identity)
        try:
            yield runner
        finally:
            runner.close()

    def pending(self, name: str = "default") -> list[int]:
        """The ids of the pairs that nobody has begun."""
        with reading(self.database) as connection:
            return [each.id for each in pending_after(connection, find_run(connection, name), 0, 10_000)]

    def describe(self, name: str = "default", most: int | None = None, **settings: Any) -> int:
        """Describe what is pending, or so many of it; gives the number of texts that were generated for it."""
        before = self.generated
        run = self.run(name)
        with reading(self.database) as connection:  # those that were given out before, too
            every = connection.execute(select(pairs.c.id).where(pairs.c.run_id == run.id).order_by(pairs.c.id))
            ids = list(every.scalars())
        with self.worker(**settings) as runner:
            for pair_id in ids[:most]:
                runner.run(run.uuid, pair_id)
        return self.generated - before

    @contextmanager
    def all_in_flight(self, name: str = "default") -> Iterator[None]:
        """All of a run's pairs that nobody has begun are in a worker's hands while the block runs, and end after it."""
        self.engine.free.clear()
        run, ids = self.run(name), self.pending(name)
        with self.worker() as runner, ThreadPoolExecutor(len(ids) or 1) as threads:
            running = [threads.submit(runner.run, run.uuid, pair_id) for pair_id in ids]
            wait_for(lambda: len(runner.held()) + sum(map(Future.done, running)) == len(ids), "all is in flight")
            try:
                yield
            finally:
                self.engine.free.set()
            for each in running:
                each.result(60)

    @property
    def generated(self) -> int:
        """Texts that the engine was asked for."""
        return self.engine.asked.total()

    def run(self, name: str = "default") -> Run:
        """The run as it is in the database."""
        with reading(self.database) as connection:
            return find_run(connection, name)

    def standing(self, name: str = "default") -> Standing:
        """How the run stands."""
        with reading(self.database) as connection:
            return standing(connection, find_run(connection, name))

    def published(self, name: str = "default") -> dict[str, Any]:
        """The exported file's content."""
        done = export(self.database, self._folder / "out.json", run_name=name)
        document: dict[str, Any] = json.loads(done.path.read_text())
        return document


def change(path: Path, how: Callable[[Any], None]) -> None:
    """Rewrite a JSON file."""
    document = json.loads(path.read_text())
    how(document)
    path.write_text(json.dumps(document))


def mismatched(results: list[dict[str, Any]]) -> list[str]:
    """Descriptions that stand beside another predicate than they were written for."""
    return [
        one["generated_description"]
        for result in results
        for one in result["stage2_generated"]
        if f"{result['subject']} is roughly {one['predicate']} {result['object']}" not in one["generated_description"]
    ]


def texts(results: list[dict[str, Any]]) -> Counter[str]:
    """All descriptions, counted."""
    return Counter(one["generated_description"] for result in results for one in result["stage2_generated"])
