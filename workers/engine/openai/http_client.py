"""HTTP to one server: a connection for each thread, kept open, and all of them cut when the engine closes.

The standard library's client: an exchange here is one POST and one JSON reply, and blocking calls in threads need
nothing else. Proxies of the environment are not used.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

CONNECT_S = 10.0


class Unreachable(Exception):
    """No connection, or one that ended before the whole reply was there; the message says how."""


class TookTooLong(Unreachable):
    """The reply did not come within the time-out."""


class _Stale(Unreachable):
    """A connection ended before the first byte of a reply."""


@dataclass(frozen=True)
class Reply:
    """What the server answered."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    def json(self) -> Any:
        """The body's JSON. Raises ValueError where it is none."""
        return json.loads(self.body)


class HttpClient:
    """Requests below one base address, from any thread."""

    def __init__(self, base_url: str, api_key: str | None, timeout_s: float) -> None:
        """``timeout_s``: seconds without a byte of the reply after which it is given up."""
        parts = urlsplit(base_url)
        self._host, self._port = parts.hostname or "", parts.port
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._path = parts.path.rstrip("/")
        self._key = api_key
        self._timeout_s = timeout_s
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._connections: set[http.client.HTTPConnection] = set()
        self._closed = False

    def post(self, path: str, body: bytes, *, timeout_s: float | None = None) -> Reply:
        """POST JSON. Raises Unreachable and TookTooLong."""
        return self._exchange("POST", path, body, timeout_s or self._timeout_s)

    def get(self, path: str, *, timeout_s: float | None = None) -> Reply:
        """GET. Raises Unreachable and TookTooLong."""
        return self._exchange("GET", path, None, timeout_s or self._timeout_s)

    def close(self) -> None:
        """Cut every connection: who waits for a reply gets Unreachable at once."""
        with self._lock:
            self._closed = True
            connections, self._connections = self._connections, set()
        for connection in connections:
            if connection.sock is not None:
                with suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def _exchange(self, method: str, path: str, body: bytes | None, timeout_s: float) -> Reply:
        connection: http.client.HTTPConnection | None = getattr(self._mine, "connection", None)
        if connection is not None:
            try:
                return self._ask(connection, method, path, body, timeout_s)
            except _Stale:  # servers end idle connections: that says nothing of this request
                pass
        return self._ask(self._connect(), method, path, body, timeout_s)

    def _connect(self) -> http.client.HTTPConnection:
        if self._tls is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_S)
        else:
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=CONNECT_S, context=self._tls)
        try:
            connection.connect()
        except OSError as error:
            raise Unreachable(f"no connection: {error}") from error
        with self._lock:
            if self._closed:
                connection.close()
                raise Unreachable("the client is closed")
            self._connections.add(connection)
        self._mine.connection = connection
        return connection

    def _ask(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None, timeout_s: float
    ) -> Reply:
        headers = {"Accept": "application/json", "User-Agent": "relation-farm"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            if connection.sock is None:
                raise _Stale("the connection is closed")
            connection.sock.settimeout(timeout_s)
            connection.request(method, self._path + path, body, headers)
            response = connection.getresponse()
            answered = {name.lower(): value for name, value in response.getheaders()}
            reply = Reply(response.status, answered, self._without_key(response.read()))
        except TimeoutError as error:
            self._drop(connection)
            raise TookTooLong(f"no reply within {timeout_s:.0f} s") from error
        except (ConnectionResetError, BrokenPipeError) as error:  # RemoteDisconnected is a ConnectionResetError
            self._drop(connection)
            raise _Stale(f"the connection was cut: {type(error).__name__}: {error}") from error
        except (OSError, http.client.HTTPException) as error:
            self._drop(connection)
            raise Unreachable(f"the connection was cut: {type(error).__name__}: {error}") from error
        except Unreachable:
            self._drop(connection)
            raise
        if response.will_close:
            self._drop(connection)
        return reply

    def _without_key(self, body: bytes) -> bytes:
        """A server may repeat a wrong key in its error, and errors become log lines and rows."""
        return body.replace(self._key.encode(), b"***") if self._key else body

    def _drop(self, connection: http.client.HTTPConnection) -> None:
        self._mine.connection = None
        with self._lock:
            self._connections.discard(connection)
        connection.close()
