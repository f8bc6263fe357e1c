"""The engine of a worker without a GPU: each request is one chat completion of a server that has the model.

A server that is away, broken or busy is waited for; what it refuses fails alone. Texts are the server's: they equal
the other engines' as far as its arithmetic and its tokeniser do.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from workers.engine.api import Completion, EngineError, EngineStopped, Request
from workers.engine.openai.chat_messages import Busy, Trouble, body_of, completion_of
from workers.engine.openai.concurrency import AdaptiveLimit, Closed
from workers.engine.openai.http_client import HttpClient, Unreachable
from workers.engine.openai.image_urls import ImageUrls
from workers.engine.openai.server_watch import PATH, ServerWatch
from workers.engine.request_queue import PendingRequest, RequestQueue

log = logging.getLogger(__name__)

MOST_AT_ONCE = 256
TIMEOUT_S = 600.0
TRIES = 4  # of a request that meets trouble while the server works for others
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_SAY_EVERY_S, _SILENT_S = 30.0, 10.0


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Which server, and how much of it."""

    base_url: str
    """Up to and with its version: http://host:8000/v1."""

    model: str
    """The name under which the server has it."""

    api_key: str | None = field(default=None, repr=False)
    """Sent as a bearer token; in no log line, no error and no row."""

    most_at_once: int = MOST_AT_ONCE
    """Requests at the server at once, at most; how many of them it bears is found by trying."""

    timeout_s: float = TIMEOUT_S
    """Seconds for one text, after which it is asked for again."""


class OpenAIEngine:
    """An ``Engine`` over an OpenAI-compatible chat server."""

    def __init__(self, config: ServerConfig) -> None:
        """Waits until the server answers. Raises ServerRefuses where it will not do what the farm needs."""
        self._config = config
        self._client = HttpClient(config.base_url, config.api_key, config.timeout_s)
        self._stopping = threading.Event()
        self._watch = ServerWatch(self._client, config.model, config.base_url, self._stopping)
        self._limit = AdaptiveLimit(config.most_at_once)
        self._images = ImageUrls()
        self._count: defaultdict[str, float] = defaultdict(float)
        self._counting = threading.Lock()
        self._heard, self._said_busy = time.monotonic(), float("-inf")
        self._watch.start()
        self._pool = ThreadPoolExecutor(config.most_at_once, "openai")
        self._queue = RequestQueue()
        self._queue.start(self._loop, "openai-engine")
        threading.Thread(target=self._say_what_is_waited_for, name="openai-waits", daemon=True).start()

    def submit(self, requests: Sequence[Request]) -> list[Future[Completion]]:
        """As ``Engine.submit`` says."""
        return self._queue.submit(requests)

    def stats(self) -> dict[str, float]:
        """``requests``, ``tokens`` (as the server counts them), ``images`` made, ``retries``, ``limit`` (requests that
        may be at the server at once), and ``occupancy``: the mean share of it in use.
        """
        with self._counting:
            count = dict(self._count)
        count |= {"images": self._images.made, "limit": self._limit.limit, "occupancy": self._limit.occupancy}
        return {"requests": 0.0, "tokens": 0.0, "retries": 0.0} | count

    def close(self) -> None:
        """As ``Engine.close`` says: connections are cut, so that the server stops writing, too."""
        self._stopping.set()
        self._limit.close()
        self._client.close()
        self._queue.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _loop(self) -> None:
        """Take a request only when one may be sent: until then it can be cancelled."""
        while not self._queue.stopping:
            try:
                self._limit.begin()
            except Closed:
                return
            batch = self._queue.take(1, wait=True)
            if not batch or self._stopping.is_set():
                self._limit.end()
            for pending in batch if not self._stopping.is_set() else []:
                self._pool.submit(self._complete, pending.request).add_done_callback(partial(self._keep, pending))

    def _keep(self, pending: PendingRequest, done: Future[Completion]) -> None:
        """The pool's promise becomes the caller's."""
        self._limit.end()
        if done.cancelled():
            pending.fail(EngineStopped("the engine was closed"))
        elif error := done.exception():
            pending.fail(error)
        else:
            self._add(requests=1, tokens=done.result().tokens)
            pending.finish(done.result())

    def _complete(self, request: Request) -> Completion:
        """Ask until there is an answer, or a reason why there is none."""
        url = self._images.url(request.image)
        body = body_of(request, self._config.model, url, self._watch.unknown)
        pause, troubles = _FIRST_PAUSE_S, 0
        while True:
            asked_at = time.monotonic()
            try:
                with self._limit.attempt() as mark:
                    asked_at = time.monotonic()
                    completion = self._ask(body, request)
                self._limit.succeeded()
                return completion
            except Closed:
                raise EngineStopped("the engine was closed") from None
            except Busy as busy:
                self._limit.congested(mark, busy.hold_s)
                self._say_busy(busy)
            except (Trouble, Unreachable) as trouble:
                if self._stopping.is_set():
                    raise EngineStopped("the engine was closed") from None
                self._limit.congested(mark)
                self._watch.wait_until_up(asked_at, trouble)
                troubles += 1
                log.warning("a request met trouble %d times of %d: %s", troubles, TRIES, trouble)
                if troubles == TRIES:
                    raise EngineError(f"{TRIES} times in vain, while the server works: {trouble}") from None
            self._add(retries=1)
            if self._stopping.wait(pause * random.uniform(0.5, 1.0)):
                raise EngineStopped("the engine was closed")
            pause = min(pause * 2, _LONGEST_PAUSE_S)

    def _ask(self, body: bytes, request: Request) -> Completion:
        reply = self._client.post(PATH, body)
        self._heard = time.monotonic()
        completion = completion_of(reply, request.candidates)
        self._watch.worked()
        return completion

    def _add(self, **counts: float) -> None:
        with self._counting:
            for name, value in counts.items():
                self._count[name] += value

    def _say_busy(self, busy: Busy) -> None:
        if time.monotonic() - self._said_busy < _SAY_EVERY_S:
            return
        self._said_busy = time.monotonic()
        wish = f"asks for {busy.hold_s:.0f} s of rest" if busy.hold_s else "is busy"
        log.warning("%s %s: %d requests at once from now on (%s)", self._config.base_url, wish, self._limit.limit,
                    busy)  # fmt: skip

    def _say_what_is_waited_for(self) -> None:
        said = 0.0
        while not self._stopping.wait(1.0):
            silent = time.monotonic() - self._heard
            if not self._limit.sending:
                self._heard = time.monotonic()
            elif silent > _SILENT_S and time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                log.info(
                    "%s: %d requests in flight, no reply for %.0f s", self._config.base_url, self._limit.sending, silent
                )
