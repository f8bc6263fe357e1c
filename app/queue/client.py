"""Redis without Celery: one client for all that the farm asks of its broker itself, and what its refusals mean.

kombu's own connection tries again for seconds, or for ever, before it says that nobody answers. This one says it at
once; who wants to wait does so with a line about what it waits for.
"""

from __future__ import annotations

import socket
import ssl
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import redis
from kombu.exceptions import OperationalError
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

BROKER_AWAY = (redis.RedisError, OperationalError, OSError)
"""What Redis, kombu and the network raise when the broker does not answer, or refuses."""

_CONNECT_S = 3.0
_PROBE_S = 1.0
_ANSWER_S = 3.0  # so that whoever waits for a server that hangs says so within 5 s

_LASTING = (redis.AuthenticationError, redis.exceptions.NoPermissionError, redis.exceptions.InvalidResponse)
_LASTING_WORDS = ("NOAUTH", "WRONGPASS", "NOPERM", "DB index is out of range", "MOVED ", "CROSSSLOT", "unknown command")
_MEANINGS: tuple[tuple[type[Exception], str, str], ...] = (  # the error's class, a word in it, what it means
    (
        redis.exceptions.OutOfMemoryError,
        "",
        "it is full (maxmemory): room comes as workers take what waits, or is given",
    ),
    (redis.exceptions.ReadOnlyError, "", "it is a read-only replica: name the primary, or wait for a new one"),
    (
        redis.exceptions.NoPermissionError,
        "",
        "its ACL forbids what the farm needs (docs/cluster.md tells what that is)",
    ),
    (redis.AuthenticationError, "", "it refuses the user or the password of REDIS_URL"),
    (redis.RedisError, "NOREPLICAS", "it has too few replicas to take writes (min-replicas-to-write)"),
    (redis.RedisError, "MISCONF", "it cannot write to its disk and takes nothing meanwhile"),
    (redis.RedisError, "max number of clients", "it has as many clients as it takes (maxclients)"),
    (redis.RedisError, "DB index", "it has no database of the number in REDIS_URL"),
)


class WrongServer(redis.ConnectionError):
    """What answers is nothing that the farm can use, and will not become it; the message says what it is."""


def open_client(broker_url: str) -> redis.Redis:
    """A client of the broker at a URL that was checked (``app.urls``). Connects with the first command."""
    parameters: dict[str, Any] = parse_url(_plain(broker_url))  # type: ignore[no-untyped-call]
    unix = "path" in parameters
    if "ssl_cert_reqs" in parameters:
        parameters["ssl_cert_reqs"] = parameters["ssl_cert_reqs"].removeprefix("CERT_").lower()
    waiting = {} if unix else {"socket_connect_timeout": _CONNECT_S, "socket_keepalive": True}
    pool = redis.ConnectionPool(
        **{**parameters, **waiting, "socket_timeout": _ANSWER_S, "retry": Retry(NoBackoff(), 0), "max_connections": 64}
    )
    return redis.Redis(connection_pool=pool)


def where(client: redis.Redis) -> str:
    """The server's address as a person reads it, without its password."""
    parameters = client.get_connection_kwargs()
    return str(parameters.get("path") or f"{parameters.get('host')}:{parameters.get('port', 6379)}")


def lasts(error: BaseException) -> bool:
    """Whether waiting mends nothing: a password, a right, a server of another kind."""
    return isinstance(error, (WrongServer, *_LASTING)) or any(word in str(error) for word in _LASTING_WORDS)


def explain(error: BaseException) -> str:
    """What an error of Redis means, as the end of a sentence about the server."""
    said = str(error).strip().split("\n")[0]
    for kind, word, meaning in _MEANINGS:
        if isinstance(error, kind) and word in said:
            return f"{meaning} ({said})"
    return said


def refuse_wrong_server(client: redis.Redis) -> None:
    """Raise WrongServer where what answers is a Sentinel or a Cluster, and what a failed connection raises."""
    try:
        about = client.info("server")
    except redis.ResponseError:
        return  # an ACL without INFO: what is refused later says so by itself
    mode = about.get("redis_mode") or about.get("server_mode")
    if mode == "sentinel":
        raise WrongServer("it is a Sentinel, which the farm does not ask for a primary: name the primary itself")
    if mode == "cluster":
        raise WrongServer("it is a Redis Cluster, which the farm cannot use: name a server outside of one")


def refuse_other_encryption(client: redis.Redis, error: BaseException) -> None:
    """Raise WrongServer where a connection failed because only one of the two sides speaks TLS, or is not trusted."""
    parameters = client.get_connection_kwargs()
    no_connection = isinstance(error, redis.ConnectionError | redis.TimeoutError)
    if not no_connection or isinstance(error, redis.AuthenticationError) or "path" in parameters:
        return
    if "certificate verify failed" in str(error).lower().replace("_", " "):
        raise WrongServer(f"its certificate is not accepted: {error}")
    address = (str(parameters.get("host", "localhost")), int(parameters.get("port", 6379)))
    if _is_tls(client) and _speaks_plain(address):
        raise WrongServer("it speaks no TLS there: write redis:// in place of rediss://, or name its TLS port")
    if not _is_tls(client) and _speaks_tls(address):
        raise WrongServer("it speaks TLS there: write rediss:// in place of redis://")


def _is_tls(client: redis.Redis) -> bool:
    return issubclass(client.connection_pool.connection_class, redis.SSLConnection)


def _speaks_tls(address: tuple[str, int]) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is said over this connection
    try:
        with socket.create_connection(address, _PROBE_S) as plain, context.wrap_socket(plain):
            return True
    except OSError as error:
        return "CERTIFICATE_REQUIRED" in str(error)


def _speaks_plain(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, _PROBE_S) as plain:
            plain.settimeout(_PROBE_S)
            plain.sendall(b"PING\r\n")
            return plain.recv(1) in (b"+", b"-")
    except OSError:
        return False


def _plain(broker_url: str) -> str:
    """kombu's spelling of a URL as redis-py's."""
    parts = urlsplit(broker_url)
    if not parts.scheme.endswith("+socket"):
        return broker_url
    options = dict(parse_qsl(parts.query))
    options["db"] = options.pop("virtual_host", "0").strip("/")
    return f"unix://{parts.netloc}{parts.path}?{urlencode(options)}"
