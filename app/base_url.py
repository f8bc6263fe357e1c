"""The base address of an OpenAI-compatible server, written in one way only: it is part of a model's identity."""

from __future__ import annotations

from urllib.parse import urlsplit


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
