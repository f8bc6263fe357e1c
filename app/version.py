"""Which version of this software runs."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def software_version() -> str:
    """The installed package's version; "unknown" where it runs without having been installed."""
    try:
        return version("relation-farm")
    except PackageNotFoundError:
        return "unknown"
