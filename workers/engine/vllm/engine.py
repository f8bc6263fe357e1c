"""The vLLM engine: one thread steps vLLM, another makes prompts of requests, so that neither waits for the other.

Greedy texts equal the other engines'; sampled ones are as reproducible, from the same seeds, but drawn by vLLM's own
generator.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from PIL.Image import Image

from workers.engine.api import Completion, DeviceLost, ImageUnreadable, PromptTooLong, Request
from workers.engine.fault_isolation import bisect_batch
from workers.engine.openmp import without_team
from workers.engine.processor import InputProcessor
from workers.engine.request_queue import PendingRequest, RequestQueue
from workers.engine.vllm.core import Core, Finished

log = logging.getLogger(__name__)

AHEAD = 2  # times the sequences that run at once: requests that vLLM is given, so that it never waits for one
IMAGES_KEPT = 8  # decoded, of the requests that come next
DECODERS = 2  # threads


@dataclass(frozen=True)
class _Prepared:
    pending: PendingRequest
    rendered: Any
    candidates: list[int]


class VllmEngine:
    """An ``Engine`` over vLLM."""

    def __init__(self, core: Core, processor: InputProcessor, context: int) -> None:
        """``context``: tokens of prompt and answer that vLLM was given."""
        self._core, self._processor, self._context = core, processor, context
        self._running: dict[str, PendingRequest] = {}
        self._numbers = itertools.count()
        self._count: defaultdict[str, float] = defaultdict(float)
        self._images = _Images()
        self._room = threading.Condition()
        self._given = 0  # requests taken and not finished
        self._ready: SimpleQueue[_Prepared | None] = SimpleQueue()  # None wakes the engine's thread
        self._closing = threading.Event()
        self._queue = RequestQueue()
        self._queue.start(self._loop, "vllm-engine")
        threading.Thread(target=self._feed, name="vllm-feed", daemon=True).start()

    def submit(self, requests: Sequence[Request]) -> list[Future[Completion]]:
        """As ``Engine.submit`` says."""
        return self._queue.submit(requests)

    def stats(self) -> dict[str, float]:
        """``requests``, ``tokens``, ``steps``, ``images`` decoded, ``slots``; ``seconds_prepare`` (alongside the steps)
        and ``seconds_step``; and ``occupancy``: the mean share of the slots in use in a step.
        """
        count = {"requests": 0.0, "tokens": 0.0} | dict(self._count)
        count |= {"images": self._images.loaded, "slots": self._core.slots}
        return count | {"occupancy": count.pop("busy", 0.0) / max(1.0, count.get("steps", 0.0))}

    def close(self) -> None:
        """As ``Engine.close`` says; then waits until vLLM's own processes have ended."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._ready.put(None)
        self._queue.close()
        with self._room:
            self._room.notify_all()
        self._images.close()
        self._core.close()

    # -- the feeding thread

    def _feed(self) -> None:
        while not self._stopping():
            for pending in _by_image(self._queue.take(self._wait_for_room(), wait=True), self._images):
                bisect_batch(self._prepare, [pending], self._refuse)

    def _wait_for_room(self) -> int:
        with self._room:
            most = AHEAD * self._core.slots
            self._room.wait_for(lambda: self._given < most or self._stopping())
            return max(1, most - self._given)

    def _prepare(self, batch: Sequence[PendingRequest]) -> None:
        [pending] = batch
        started = time.perf_counter()
        request = pending.request
        with self._room:
            self._given += 1
        ids = self._processor.tokens(request.prompt, 1)  # vLLM repeats the image's token itself
        candidates = self._processor.first_tokens(request.candidates)
        image = self._images.get(request)
        try:
            rendered = self._core.render(ids, request.image, image)
        except (OSError, ValueError) as error:
            raise ImageUnreadable(f"vLLM cannot preprocess the image: {error}") from error
        length = len(rendered["prompt_token_ids"]) + request.sampling.max_new_tokens
        if length > self._context:
            raise PromptTooLong(f"prompt and answer of {length} tokens exceed the {self._context} given to vLLM")
        self._count["seconds_prepare"] += time.perf_counter() - started
        self._ready.put(_Prepared(pending, rendered, candidates))

    def _refuse(self, pending: PendingRequest, error: Exception) -> None:
        self._left()
        pending.fail(error)

    def _left(self) -> None:
        with self._room:
            self._given -= 1
            self._room.notify_all()

    def _stopping(self) -> bool:
        return self._closing.is_set() or self._queue.stopping

    # -- the engine's thread

    def _loop(self) -> None:
        while not self._closing.is_set():
            for prepared in self._arrived():
                bisect_batch(self._add, [prepared], lambda one, error: self._refuse(one.pending, error))
            if self._running:
                self._step()

    def _arrived(self) -> Iterable[_Prepared]:
        """What is ready by now; while nothing runs, waits for it."""
        idle = not self._running
        while idle or not self._ready.empty():
            prepared = self._ready.get()
            if prepared is None:
                return
            idle = False
            yield prepared

    def _add(self, batch: Sequence[_Prepared]) -> None:
        [prepared] = batch
        name = str(next(self._numbers))
        try:
            self._core.add(name, prepared.rendered, prepared.pending.request.sampling, prepared.candidates)
        except ValueError as error:
            raise PromptTooLong(f"vLLM refuses the prompt: {error}") from error
        self._running[name] = prepared.pending

    def _step(self) -> None:
        started = time.perf_counter()
        self._count["steps"] += 1
        self._count["busy"] += min(1.0, len(self._running) / self._core.slots)
        try:
            finished = self._core.step()
        except Exception as error:
            raise DeviceLost(f"vLLM's engine died: {type(error).__name__}: {error}") from error
        self._count["seconds_step"] += time.perf_counter() - started
        for one in finished:
            self._finish(self._running.pop(one.name), one)

    def _finish(self, pending: PendingRequest, one: Finished) -> None:
        self._left()
        ids = one.ids[:-1] if one.stopped else one.ids
        self._count["requests"] += 1
        self._count["tokens"] += len(ids)
        reason = "stop" if one.stopped else "length"
        text, reasoning, closed = self._processor.answer(ids)
        counts = len(ids), one.prompt_tokens
        pending.finish(Completion(text, reason, *counts, one.probabilities, reasoning, closed))


class _Images:
    """Decodes images ahead of their requests, each once while its requests follow one another."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(DECODERS, "images", initializer=without_team)
        self._images: OrderedDict[str, Future[Image]] = OrderedDict()
        self.loaded = 0

    def want(self, request: Request) -> None:
        """Begin to decode it, unless that is done."""
        key = request.image.key
        if key not in self._images:
            self.loaded += 1
            self._images[key] = self._pool.submit(lambda: request.image.load().convert("RGB"))
        self._images.move_to_end(key)
        while len(self._images) > IMAGES_KEPT:
            self._images.popitem(last=False)

    def get(self, request: Request) -> Image:
        """The image. Raises what its ``load`` raised; the next who wants it tries again."""
        self.want(request)
        future = self._images[request.image.key]
        try:
            return future.result()
        except BaseException:
            self._images.pop(request.image.key, None)
            raise

    def close(self) -> None:
        """Take no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _by_image(batch: Sequence[PendingRequest], images: _Images) -> Iterable[PendingRequest]:
    """Requests over one image one after another, images in the order of arrival, each decoded while the one before it
    is prepared.
    """
    groups: dict[str, list[PendingRequest]] = {}
    for pending in batch:
        groups.setdefault(pending.request.image.key, []).append(pending)
    ordered = list(groups.values())
    for group, following in itertools.zip_longest(ordered, ordered[1:]):
        images.want(group[0].request)
        if following:
            images.want(following[0].request)
        yield from group
