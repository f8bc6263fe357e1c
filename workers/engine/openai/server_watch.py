"""Whether the server works: asked once before the start, and again whenever a request met trouble.

The question is a small chat completion of its own, with an image and every sampling value: what is wrong with the
server shows on it, and so is told apart from what is wrong with one request.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from PIL import Image

from workers.engine.api import EngineError, EngineStopped, ImageSource, Request, SamplingParams
from workers.engine.openai.chat_messages import EXTENSIONS, Busy, Trouble, body_of, completion_of, excerpt, retry_after
from workers.engine.openai.http_client import HttpClient, Reply, Unreachable
from workers.engine.openai.image_urls import data_url

log = logging.getLogger(__name__)

PATH = "/chat/completions"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _SAY_EVERY_S = 0.5, 15.0, 30.0
_PROBE_S = 120.0  # a server that is busy with long texts may take so long for a short one
_SIZE = (64, 64)


class ServerRefuses(EngineError):
    """The server is there and will not do what is asked of it: a worker cannot start with it. The message says why."""


class ServerWatch:
    """One server's state, shared by all threads that talk to it."""

    def __init__(self, client: HttpClient, model: str, base_url: str, stopping: threading.Event) -> None:
        self._client, self._model, self._base_url, self._stopping = client, model, base_url, stopping
        self._image_url = data_url(Image.new("RGB", _SIZE, "white"))
        self._lock = threading.Lock()
        self._worked_at = float("-inf")
        self._said_at = float("-inf")
        self.unknown: tuple[str, ...] = ()  # extensions that it does not take

    def worked(self) -> None:
        """Somebody had a completion."""
        self._worked_at = time.monotonic()

    def start(self) -> None:
        """Wait until the server answers, and see whether it takes every setting.

        Raises ServerRefuses: another model, a missing key, an image or a sampling value that it does not take.
        """
        while True:
            reply = self._until_answered(lambda reply: reply.status < 500 and reply.status not in (408, 429))
            if reply.status == 200:
                completion_of(reply, ())
                break
            if name := self._unknown_extension(reply):
                self.unknown += (name,)
                log.warning("%s does not know %r: it is not sent (%s)", self._base_url, name, excerpt(reply))
                continue
            raise ServerRefuses(self._refusal(reply))
        self.worked()
        log.info("%s answers: model %s, every sampling value taken", self._base_url, self._model)

    def wait_until_up(self, since: float, why: Exception) -> None:
        """Return once the server has completed something after ``since`` (monotonic seconds), however long it takes.

        Raises EngineStopped if the engine is closed before.
        """
        with self._lock:
            if self._worked_at > since:
                return
            self._say(f"{why}; retrying, nothing is lost")
            self._until_answered(lambda reply: reply.status == 200)
            self.worked()

    def _until_answered(self, good: Callable[[Reply], bool]) -> Reply:
        pause, away_since = _FIRST_PAUSE_S, None
        while True:
            wished = 0.0
            try:
                reply = self._ask()
                if good(reply):
                    if away_since is not None:
                        log.warning("%s answers again after %.0f s", self._base_url, time.monotonic() - away_since)
                        self._said_at = float("-inf")
                    return reply
                problem, wished = f"{reply.status}: {excerpt(reply)}", retry_after(reply.headers.get("retry-after"))
            except Unreachable as error:
                problem = str(error)
            if self._stopping.is_set():
                raise EngineStopped("the engine was closed")
            away_since = away_since or time.monotonic()
            self._say(f"the server does not work ({problem}); retrying, nothing is lost")
            if self._stopping.wait(max(wished, pause * random.uniform(0.75, 1.25))):
                raise EngineStopped("the engine was closed")
            pause = min(pause * 2, _LONGEST_PAUSE_S)

    def _ask(self) -> Reply:
        """The small completion."""
        image = ImageSource("probe", lambda: Image.new("RGB", _SIZE))
        request = Request(image, (("?", False),), SamplingParams(0.1, 1, 0))
        body = body_of(request, self._model, self._image_url, self.unknown)
        reply = self._client.post(PATH, body, timeout_s=_PROBE_S)
        if reply.status == 200:
            try:
                completion_of(reply, ())
            except (Busy, Trouble) as error:
                raise Unreachable(str(error)) from error
        return reply

    def _unknown_extension(self, reply: Reply) -> str | None:
        """A parameter beyond OpenAI's own that the server refuses by its name."""
        if reply.status not in (400, 422):
            return None
        message = reply.body.decode("utf-8", "replace")
        return next((name for name in EXTENSIONS if name in message and name not in self.unknown), None)

    def _refusal(self, reply: Reply) -> str:
        said = f"({reply.status}: {excerpt(reply)})"
        if reply.status in (401, 403):
            return (
                f"{self._base_url} refuses the key, or wants one: --api-key-env NAME names the variable with it {said}"
            )
        if reply.status == 404:
            return f"{self._base_url} does not serve {self._model!r}; it has {self._models()} {said}"
        if 300 <= reply.status < 400:
            there = reply.headers.get("location", "elsewhere")
            return f"{self._base_url} sends one to {there}: give that address as --base-url"
        return f"{self._base_url} refuses a completion with an image and the farm's sampling values {said}"

    def _models(self) -> str:
        try:
            listed = self._client.get("/models", timeout_s=10.0).json()["data"]
            return ", ".join(str(entry["id"]) for entry in listed) or "none"
        except (Unreachable, ValueError, LookupError, TypeError):
            return "no list of its models"

    def _say(self, what: str) -> None:
        if time.monotonic() - self._said_at >= _SAY_EVERY_S:
            self._said_at = time.monotonic()
            log.error("%s: %s", self._base_url, what)
