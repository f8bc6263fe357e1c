"""An OpenAI-compatible chat server of our own: real texts by a real engine, and every way to misbehave.

It takes what the farm's engine sends and nothing less: a request without one of the sampling values is refused, as is
a wrong key. What it does wrong, a test says for each request.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

from workers.engine.api import Completion, Engine, EngineError, ImageSource, PromptTooLong, Request, SamplingParams

SAID = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
        "min_tokens", "max_tokens", "seed", "n")  # fmt: skip
MODEL = "served-model"

Likeliest = Callable[[Request], list[tuple[str, float]]]


class Exchange(BaseHTTPRequestHandler):
    """One request; ``Fault`` functions get it."""

    protocol_version = "HTTP/1.1"
    server: ChatServer

    def do_GET(self) -> None:
        """The list of models."""
        self.answer(200, {"data": [{"id": MODEL}]})

    def do_POST(self) -> None:
        """A chat completion, or what the test wants instead."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = self.server.heard(body, dict(self.headers))
        if fault is not None:
            fault(self)
        else:
            self.complete(body)

    def complete(self, body: dict[str, Any]) -> None:
        """Answer as a server should."""
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            given = self.headers.get("Authorization", "").removeprefix("Bearer ")
            return self.refuse(401, f"Incorrect API key provided: {given}")
        if missing := [name for name in SAID if name not in body and name not in self.server.unknown]:
            return self.refuse(400, f"not said, so the checkpoint's own would hold: {', '.join(missing)}")
        if unknown := [name for name in self.server.unknown if name in body]:
            return self.refuse(400, f"Unrecognized request argument supplied: {unknown[0]}")
        if body["model"] != MODEL:
            return self.refuse(404, f"The model `{body['model']}` does not exist")
        try:
            self.answer(200, self.server.chat(body))
        except PromptTooLong as error:
            self.refuse(400, f"This model's maximum context length is exceeded: {error}")
        except EngineError as error:
            self.refuse(400, f"Failed to apply the processor to the image: {error}")

    def refuse(self, status: int, message: str, **headers: str) -> None:
        """An error as OpenAI's servers word it."""
        self.answer(status, {"error": {"message": message, "type": "error", "code": status}}, **headers)

    def answer(self, status: int, content: Any, **headers: str) -> None:
        """A JSON reply."""
        self.reply(status, json.dumps(content).encode(), **headers)

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        """Any reply; a client that has gone is no error."""
        with suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

    def cut(self) -> None:
        """End the connection without another word."""
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


Fault = Callable[[Exchange], None]
Plan = Callable[[dict[str, Any]], Fault | None]


class ChatServer(ThreadingHTTPServer):
    """Listens on a free port of localhost until ``stop``; ``start`` listens there again."""

    daemon_threads = True
    request_queue_size = 512
    allow_reuse_address = True

    def __init__(self, engine: Engine, *, key: str | None = None, likeliest: Likeliest | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Exchange)
        self.engine, self.key, self.likeliest = engine, key, likeliest
        self.unknown: tuple[str, ...] = ()  # parameters that it refuses by name
        self.plan: Plan = lambda body: None
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.together = self.most_together = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.serve()

    @property
    def url(self) -> str:
        """The base address."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The bodies of real requests: those with a prompt of more than the probe's one character."""
        return [body for body in self.bodies if len(text_of(body)) > 1]

    def heard(self, body: dict[str, Any], headers: dict[str, str]) -> Fault | None:
        """Note a request, and what the test wants for it."""
        with self._lock:
            self.bodies.append(body)
            self.headers.append(headers)
            return self.plan(body)

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """The completion, by the engine."""
        with self._lock:
            self.together += 1
            self.most_together = max(self.most_together, self.together)
        try:
            request = as_request(body)
            completion = self.engine.submit([request])[0].result()
        finally:
            with self._lock:
                self.together -= 1
        return self._as_json(body, request, completion)

    def serve(self) -> None:
        """Begin to answer."""
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Refuse connections, as a server that is down."""
        self.shutdown()
        self.socket.close()

    def come_back(self) -> None:
        """Listen again at the same address."""
        self.socket = socket.socket(self.address_family, self.socket_type)
        self.server_bind()
        self.server_activate()
        self.serve()

    def stop(self) -> None:
        """End for good."""
        self.shutdown()
        self.server_close()

    def _as_json(self, body: dict[str, Any], request: Request, completion: Completion) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": completion.text},
            "finish_reason": completion.finish_reason,
        }
        if body.get("logprobs"):
            assert self.likeliest is not None
            likely = self.likeliest(request)[: body["top_logprobs"]]
            entries = [{"token": token, "logprob": math.log(chance)} for token, chance in likely]
            choice["logprobs"] = {"content": [{**entries[0], "top_logprobs": entries}]}
        usage = {"prompt_tokens": completion.prompt_tokens, "completion_tokens": completion.tokens}
        return {"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice], "usage": usage}


def text_of(body: dict[str, Any]) -> str:
    """A chat request's text."""
    return str(body["messages"][0]["content"][1]["text"])


def image_of(body: dict[str, Any]) -> Image.Image:
    """A chat request's image."""
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def as_request(body: dict[str, Any]) -> Request:
    """What the engine behind the server is asked: the whole text is parsed, as servers do."""
    [message] = body["messages"]
    image, text = message["content"]
    assert (message["role"], image["type"], text["type"]) == ("user", "image_url", "text")
    key = hashlib.sha256(image["image_url"]["url"].encode()).hexdigest()
    sampling = SamplingParams(
        body["temperature"], body["max_tokens"], body["seed"], body["top_p"], max(0, body.get("top_k", 0)),
        body.get("repetition_penalty", 1.0), body["presence_penalty"],
    )  # fmt: skip
    return Request(ImageSource(key, lambda: image_of(body).convert("RGB")), ((text["text"], False),), sampling)


# -- ways to misbehave


def busy(retry_after: str | None = None) -> Fault:
    """429, with or without a word on when to come again."""
    headers = {} if retry_after is None else {"Retry_After": retry_after}
    return lambda exchange: exchange.refuse(429, "Rate limit reached", **headers)


def broken(status: int = 500) -> Fault:
    """An error of the server's own."""
    return lambda exchange: exchange.refuse(status, "Internal server error")


def cut(exchange: Exchange) -> None:
    """No reply at all."""
    exchange.cut()


def cut_midway(exchange: Exchange) -> None:
    """Half a reply."""
    with suppress(OSError):
        exchange.send_response(200)
        exchange.send_header("Content-Length", "1000")
        exchange.end_headers()
        exchange.wfile.write(b'{"choices": [{"message"')
    exchange.cut()


def garbage(exchange: Exchange) -> None:
    """200, and no JSON."""
    exchange.reply(200, b"<html>welcome</html>")


def empty_choices(exchange: Exchange) -> None:
    """200, and nothing in it."""
    exchange.answer(200, {"choices": []})


def refuse_image(exchange: Exchange) -> None:
    """What vLLM says of an image that it cannot read."""
    exchange.refuse(400, "Failed to load image: cannot identify image file")


def slow(seconds: float) -> Fault:
    """A reply that takes so long, and is an error then."""

    def wait(exchange: Exchange) -> None:
        time.sleep(seconds)
        exchange.refuse(500, "too late")

    return wait


def first(count: int, fault: Fault, then: Plan = lambda body: None) -> Plan:
    """``fault`` for the first so many requests that are no probes, then as ``then`` says."""
    left = [count]

    def plan(body: dict[str, Any]) -> Fault | None:
        if len(text_of(body)) > 1 and left[0] > 0:
            left[0] -= 1
            return fault
        return then(body)

    return plan
