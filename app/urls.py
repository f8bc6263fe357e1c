"""URLs, checked before anything connects: TLS is verified TLS, and no message repeats a URL with its password.

kombu takes the scheme of the URL for the transport's name. Under our transport ``rediss://`` without further options
therefore meant no TLS at all, and the password went out in clear; so what the scheme promises is spelled out here.
"""

from __future__ import annotations

from urllib.parse import SplitResult, parse_qs, urlsplit

_SOCKETS = ("redis+socket", "farmredis+socket")
_CERTIFICATE_CHECKS = ("required", "optional", "none", "CERT_REQUIRED", "CERT_OPTIONAL", "CERT_NONE")


def checked_redis_url(url: str) -> str:
    """The URL as kombu needs it. Raises ValueError, whose message holds no part of the URL but option names."""
    url = url.strip()  # secrets come from files that end in a newline
    parts = _split(url)
    if parts is None:
        raise ValueError(
            "not a Redis URL (redis://:PASSWORD@HOST:PORT/NUMBER, rediss://… for TLS, redis+socket:///PATH); "
            "/ # ? % in a password are written %2F %23 %3F %25"
        )
    if parts.scheme in _SOCKETS:
        return url
    if parts.path.strip("/") and not parts.path.strip("/").isdecimal():
        raise ValueError("what follows the host in a Redis URL is a database's number, such as /0")
    options = parse_qs(parts.query)
    if parts.scheme == "redis":
        if given := [name for name in options if name.startswith("ssl_")]:
            raise ValueError(f"{given[0]} is for TLS: write rediss:// in place of redis://")
        return url
    if "ssl_cert_reqs" not in options:
        return f"{url}{'&' if options else '?'}ssl_cert_reqs=required"
    if options["ssl_cert_reqs"][-1] not in _CERTIFICATE_CHECKS:
        raise ValueError("ssl_cert_reqs is one of required, optional, none")
    return url


def _split(url: str) -> SplitResult | None:
    """The URL's parts, if it is a whole URL of a Redis server."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if it is no number
    except ValueError:
        return None
    whole = parts.scheme in _SOCKETS or (parts.scheme in ("redis", "rediss") and parts.hostname and not parts.fragment)
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
