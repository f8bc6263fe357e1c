"""A Valkey on a port of localhost, with whatever configuration a test wants."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from app.queue.embedded import server_binary
from tests.support.waits import wait_for


@contextmanager
def tcp_redis(folder: Path, *options: str) -> Iterator[redis.Redis]:
    """Run a server with these options (``--name value``); gives a client of it without password."""
    port = free_port()
    with running(folder, port, *options):
        yield redis.Redis(port=port)


@contextmanager
def running(folder: Path, port: int, *options: str) -> Iterator[None]:
    """Run a server on this port until the block ends."""
    (folder / "server.conf").touch()  # a Sentinel wants a file that it may write
    command = [
        server_binary(), str(folder / "server.conf"), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder),
        "--save", "", "--protected-mode", "no", *options,
    ]  # fmt: skip
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_for(lambda: _listens(port), "the server listens", unless=lambda: process.poll() is not None)
        yield
    finally:
        process.terminate()
        process.wait(20)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
