"""The worker of ``benchmarks.affinity``: the farm's own, but for an engine that only takes time and counts."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from queue import Queue
from threading import Lock, Thread

import workers.lifecycle
from app.model_identity import ModelIdentity
from app.settings import Settings
from workers.engine.api import Completion, Request

# About what one GPU does with a model of eight billion parameters: six pairs a second.
_SLOTS = 32
_ENCODE_S = 0.05  # of an image
_GENERATE_S = 0.8  # of one request in its slot
_CACHED = 16  # images


class TimedEngine:
    """So many slots, a cache of images, and a clock."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._waiting: Queue[tuple[Request, Future[Completion]]] = Queue()
        self._lock = Lock()
        self._cache: OrderedDict[str, None] = OrderedDict()
        self._counts = {"encodings": 0, "busy_s": 0.0, "busy_until_s": 0.0, "first_begun": 0.0, "last_begun": 0.0}
        self._running = 0
        self._since = 0.0
        for _ in range(_SLOTS):
            Thread(target=self._slot, daemon=True).start()

    def submit(self, requests: Sequence[Request]) -> list[Future[Completion]]:
        """As ``Engine`` says."""
        futures: list[Future[Completion]] = []
        for request in requests:
            future: Future[Completion] = Future()
            futures.append(future)
            self._waiting.put((request, future))
        return futures

    def stats(self) -> dict[str, float]:
        """As ``Engine`` says."""
        return dict(self._counts)

    def close(self) -> None:
        """Write the counts for the benchmark to read."""
        path = self._settings.state_dir / f"stats-{self._settings.worker_id}.json"
        path.write_text(json.dumps(self._counts))

    def _slot(self) -> None:
        while True:
            request, future = self._waiting.get()
            self._begin(request.image.key)
            time.sleep(_GENERATE_S)
            self._end()
            future.set_result(Completion("a description", "stop", 2, 2))

    def _begin(self, key: str) -> None:
        with self._lock:
            now = time.time()
            self._counts["first_begun"] = self._counts["first_begun"] or now
            self._counts["last_begun"] = now
            if not self._running:
                self._since = now
            self._running += 1
            if key not in self._cache:
                self._counts["encodings"] += 1
                time.sleep(_ENCODE_S)
            self._cache[key] = None
            self._cache.move_to_end(key)
            if len(self._cache) > _CACHED:
                self._cache.popitem(last=False)

    def _end(self) -> None:
        with self._lock:
            self._running -= 1
            if not self._running:
                self._counts["busy_s"] += time.time() - self._since
            # What lies before the last begin counts as time in which pairs were waiting somewhere.
            self._counts["busy_until_s"] = self._counts["busy_s"]


def load(settings: Settings, model: ModelIdentity) -> TimedEngine:
    """In place of ``workers.lifecycle.load``."""
    (settings.state_dir / f"ready-{settings.worker_id}").touch()
    return TimedEngine(settings)


workers.lifecycle.load = load  # type: ignore[assignment]

from workers.celery import app  # noqa: E402 - the app registers the task with the engine above

__all__ = ["app"]
