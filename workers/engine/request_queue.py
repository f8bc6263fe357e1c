"""Where submitted requests wait for the engine's thread, and what their futures become when it stops."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType

from workers.engine.api import Completion, EngineError, EngineStopped, Request

log = logging.getLogger(__name__)


@dataclass(eq=False)
class PendingRequest:
    """A request on its way through an engine, with the promise made to its caller."""

    request: Request
    group: int  # which submit it came with: its prompts are likely to share their beginning
    future: Future[Completion] = field(default_factory=Future)

    def finish(self, completion: Completion) -> None:
        """Keep the promise."""
        with suppress(InvalidStateError):  # who asked has let go of it, perhaps in this moment
            self.future.set_result(completion)

    def fail(self, error: BaseException) -> None:
        """Break the promise, saying why."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class RequestQueue:
    """A thread-safe queue between the callers and the one engine thread.

    Every request that was submitted is remembered until its future is done, so that stopping, or the
    death of the engine's thread, leaves nobody waiting.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[PendingRequest] = deque()
        self._open: set[PendingRequest] = set()
        self._groups = 0
        self._woken = False
        self._end: EngineError | None = None
        self._thread: threading.Thread | None = None

    @property
    def stopping(self) -> bool:
        """Whether the engine's thread should end within its current step."""
        return self._end is not None

    def submit(self, requests: Sequence[Request]) -> list[Future[Completion]]:
        """Queue requests that belong together; after the end, their futures come back already failed."""
        with self._changed:
            self._groups += 1
            batch = [PendingRequest(request, self._groups) for request in requests]
            if self._end is None:
                self._waiting.extend(batch)
                self._open.update(batch)
                self._changed.notify()
        for pending in batch:
            if self._end is not None:
                pending.fail(self._end)
            pending.future.add_done_callback(partial(self._forget, pending))
        return [pending.future for pending in batch]

    def take(self, limit: int | None, *, wait: bool) -> list[PendingRequest]:
        """At most ``limit`` requests in order of arrival.

        ``wait`` blocks until there is one, a ``wake`` or the end.
        """
        with self._changed:
            while wait and not (self._waiting or self._woken or self._end):
                self._changed.wait()
            self._woken = False
            count = len(self._waiting) if limit is None else min(limit, len(self._waiting))
            taken = [self._waiting.popleft() for _ in range(count)]
        return [pending for pending in taken if pending.future.set_running_or_notify_cancel()]

    def wake(self) -> None:
        """End a ``take`` that waits, or the next one."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def start(self, loop: Callable[[], None], name: str) -> None:
        """Run ``loop`` in the engine's thread; when it returns or raises, what is unfinished fails."""

        def run() -> None:
            with self:
                loop()

        self._thread = threading.Thread(target=run, name=name, daemon=True)
        self._thread.start()

    def close(self, error: EngineError | None = None) -> None:
        """Ask the engine's thread to end, wait for it, and fail what is unfinished."""
        self._stop(error or EngineStopped("the engine was closed"))
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._fail_open()

    def __enter__(self) -> None:
        """Entered by the engine's thread around its whole life."""

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is not None:
            log.critical("the engine's thread died", exc_info=error)
            own = error if isinstance(error, EngineError) else EngineStopped(f"the engine died: {error!r}")
            self._stop(own)
        else:
            self._stop(EngineStopped("the engine ended"))
        self._fail_open()
        return True

    def _stop(self, error: EngineError) -> None:
        with self._changed:
            self._end = self._end or error
            self._waiting.clear()
            self._changed.notify_all()

    def _fail_open(self) -> None:
        with self._changed:
            unfinished = list(self._open)
        for pending in unfinished:
            pending.fail(self._end or EngineStopped("the engine ended"))

    def _forget(self, pending: PendingRequest, future: Future[Completion]) -> None:
        with self._changed:
            self._open.discard(pending)
