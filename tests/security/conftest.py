"""Servers with TLS and passwords, started once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tls_servers import Authority, TLSServer, tls_postgresql, tls_redis


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The one that signed the servers' certificates."""
    return Authority(tmp_path_factory.mktemp("right") / "keys").create()


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One that signed nothing that is in use."""
    return Authority(tmp_path_factory.mktemp("wrong") / "keys").create()


@pytest.fixture(scope="session")
def secure_redis(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TLSServer]:
    """A Redis that speaks TLS alone and wants a password."""
    folder: Path = tmp_path_factory.mktemp("redis")
    with tls_redis(folder, authority) as server:
        yield server


@pytest.fixture(scope="session")
def secure_postgresql(authority: Authority) -> Iterator[TLSServer]:
    """A PostgreSQL that speaks TLS alone and wants a password."""
    with tls_postgresql(authority) as server:
        yield server
