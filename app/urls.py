"""URLs, checked before anything connects: TLS is verified TLS, and no message repeats a URL with its password.

kombu takes the scheme of the URL for the transport's name. Under our transport ``rediss://`` without further options
therefore meant no TLS at all, and the password went out in clear; so what the scheme promises is spelled out here.
"""

from __future__ import annotations

from urllib.parse import SplitResult, parse_qsl, urlsplit

_SOCKETS = ("redis+socket", "farmredis+socket")
_OTHER_NAMES = {"valkey": "redis", "valkeys": "rediss", "valkey+socket": "redis+socket"}
_CERTIFICATE_CHECKS = ("required", "optional", "none", "CERT_REQUIRED", "CERT_OPTIONAL", "CERT_NONE")
_TLS_OPTIONS = ("ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_ELSEWHERE = {
    "db": "the database's number stands after the host: redis://HOST:PORT/NUMBER",
    "virtual_host": "the database's number stands after the host: redis://HOST:PORT/NUMBER",
    "password": "the password stands before the host: redis://:PASSWORD@HOST",
    "username": "the user stands before the host: redis://USER:PASSWORD@HOST",
}


def checked_redis_url(url: str) -> str:
    """The URL as kombu needs it. Raises ValueError, whose message holds no part of the URL but option names."""
    url = url.strip()  # secrets come from files that end in a newline
    scheme, colon, rest = url.partition("://")
    _refuse_several_servers(scheme.lower(), rest)
    url = f"{_OTHER_NAMES.get(scheme.lower(), scheme.lower())}{colon}{rest}"
    parts = _split(url)
    if parts is None:
        raise ValueError(
            "not a Redis URL (redis://:PASSWORD@HOST:PORT/NUMBER, rediss://… for TLS, unix:///PATH?db=NUMBER, or the "
            "same with valkey); / # ? % in a password are written %2F %23 %3F %25"
        )
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.scheme in (*_SOCKETS, "unix"):
        return _checked_socket(parts, options)
    if parts.path.strip("/") and not parts.path.strip("/").isdecimal():
        raise ValueError("what follows the host in a Redis URL is a database's number, such as /0")
    for name in options:
        if name.startswith("ssl_") and parts.scheme == "redis":
            raise ValueError(f"{name} is for TLS: write rediss:// in place of redis://")
        if name not in _TLS_OPTIONS:
            raise ValueError(_refused(name, _TLS_OPTIONS if parts.scheme == "rediss" else ()))
    if parts.scheme == "redis":
        return url
    if "ssl_cert_reqs" not in options:
        return f"{url}{'&' if options else '?'}ssl_cert_reqs=required"
    if options["ssl_cert_reqs"] not in _CERTIFICATE_CHECKS:
        raise ValueError("ssl_cert_reqs is one of required, optional, none")
    return url


def _refuse_several_servers(scheme: str, rest: str) -> None:
    """Sentinel and Cluster by their names, and lists of hosts, of which one is as good as none."""
    if "sentinel" in scheme:
        raise ValueError("Sentinel is not supported: name the primary itself, or a proxy that follows it")
    if "cluster" in scheme:
        raise ValueError("Redis Cluster is not supported: name a server outside of a cluster")
    if "," in rest.partition("?")[0].rpartition("@")[2] or ";" in rest:
        raise ValueError("several servers are not supported (Sentinel, Cluster, failover): name one")


def _checked_socket(parts: SplitResult, options: dict[str, str]) -> str:
    """A unix socket's URL in kombu's spelling."""
    name = "db" if parts.scheme == "unix" else "virtual_host"
    for other in options.keys() - {name}:
        raise ValueError(_refused(other, (name,)))
    number = options.get(name, "0").strip("/")
    if not number.isdecimal():
        raise ValueError(f"{name} is a database's number, such as 0")
    if not parts.path.startswith("/") or parts.path == "/":
        raise ValueError("the socket's whole path is needed: unix:///run/redis.sock")
    scheme = "redis+socket" if parts.scheme == "unix" else parts.scheme
    return f"{scheme}://{parts.netloc}{parts.path}?virtual_host={number}"


def _refused(name: str, known: tuple[str, ...]) -> str:
    if name.startswith("socket_") or name in ("protocol", "retry_on_timeout", "health_check_interval", "timeout"):
        return f"the option {name:.40} is not for the URL: the farm sets timeouts and protocol by itself"
    if name in _ELSEWHERE:
        return f"the option {name} is not taken here: {_ELSEWHERE[name]}"
    told = f"known here are {', '.join(known)}" if known else "there are none without TLS"
    return f"unknown option {name!r:.40}: {told}"


def _split(url: str) -> SplitResult | None:
    """The URL's parts, if it is a whole URL of a Redis server."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if it is no number
    except ValueError:
        return None
    if parts.scheme in (*_SOCKETS, "unix"):
        return parts if not parts.fragment and parts.hostname is None else None
    whole = parts.scheme in ("redis", "rediss") and parts.hostname and not parts.fragment
    return parts if whole else None


def checked_base_url(url: str) -> str:
    """The address as it is kept: http or https, host in lower case, ``/v1`` where no path is given.

    Raises ValueError where it is no such address, or holds a user, a password, a query or a fragment: those are no
    part of an address, and this one stands in log lines and rows.
    """
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("an address like http://host:8000/v1 is needed")
    if parts.username is not None or parts.password is not None:
        raise ValueError("an address without user and password is needed: a key goes into a variable (--api-key-env)")
    if parts.query or parts.fragment:
        raise ValueError("an address without ? and # is needed: a key goes into a variable (--api-key-env)")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = "" if parts.port is None else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}{parts.path.rstrip('/') or '/v1'}"
