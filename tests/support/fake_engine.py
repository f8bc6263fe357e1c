"""An engine for tests: its completions are the prompts, and each test says what goes wrong."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from workers.engine.api import Completion, EngineStopped, Request

Answer = Callable[[Request], Completion]


def text_of(request: Request) -> str:
    """The prompt as one text."""
    return "".join(part for part, _ in request.prompt)


def echo(request: Request) -> Completion:
    """A completion that repeats the prompt."""
    request.image.load()
    return Completion(text_of(request), "stop", 3, 7)


class FakeEngine:
    """Answers as it is told, in threads of its own; ``hold`` keeps all answers back."""

    def __init__(self, answer: Answer = echo) -> None:
        self.answer = answer
        self.free = threading.Event()
        self.free.set()
        self.asked: Counter[str] = Counter()
        self.together: list[int] = []
        self._busy = 0
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, requests: Sequence[Request]) -> list[Future[Completion]]:
        """As ``Engine.submit`` says."""
        futures: list[Future[Completion]] = [Future() for _ in requests]
        threading.Thread(target=self._work, args=(list(requests), futures), daemon=True).start()
        return futures

    def stats(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def close(self) -> None:
        """Fail what is held back."""
        self._closed = True
        self.free.set()

    def _work(self, requests: list[Request], futures: list[Future[Completion]]) -> None:
        with self._lock:
            self._busy += 1
            self.together.append(self._busy)
            self.asked.update(map(text_of, requests))
        self.free.wait(60)
        for request, future in zip(requests, futures, strict=True):
            try:
                if self._closed:
                    raise EngineStopped("closed")
                future.set_result(self.answer(request))
            except Exception as error:  # noqa: BLE001 - what the test raises is what the future holds
                future.set_exception(error)
        with self._lock:
            self._busy -= 1
