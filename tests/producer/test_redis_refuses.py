"""A Redis that will not do: refused at once where waiting mends nothing, else waited for, and said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from app.queue.keys import PREFIX
from tests.support.commands import Commands
from tests.support.tcp_redis import free_port, running, tcp_redis
from tests.support.tls_servers import Authority, tls_redis

Client = redis.Redis


def user(client: Any, *rules: str) -> None:
    client.execute_command("ACL", "SETUSER", "farm", "on", ">pw", *rules)


def open_to_all(client: Client) -> str:
    return f"redis://127.0.0.1:{client.get_connection_kwargs()['port']}"


@contextmanager
def server(folder: Path, what: str) -> Iterator[str]:
    """The REDIS_URL of a server that will never do."""
    with ExitStack() as stack:
        if what == "a TLS port":
            authority = Authority(folder / "authority").create()
            yield f"redis://:pw@127.0.0.1:{stack.enter_context(tls_redis(folder, authority)).port}/0"
            return
        options = {
            "a Cluster": ("--cluster-enabled", "yes", "--cluster-port", str(free_port())),
            "a Sentinel": ("--sentinel",),
            "a password": ("--requirepass", "pw"),
            "another password": ("--requirepass", "pw"),
        }.get(what, ())
        client = stack.enter_context(tcp_redis(folder, *options))
        port = client.get_connection_kwargs()["port"]
        if what.startswith("an ACL"):
            user(client, *ACLS[what])
        yield {
            "a password": f"redis://127.0.0.1:{port}/0",
            "another password": f"redis://:other@127.0.0.1:{port}/0",
            "a plain port": f"rediss://127.0.0.1:{port}/0",
            "few databases": f"redis://127.0.0.1:{port}/99",
        }.get(what, f"redis://farm:pw@127.0.0.1:{port}/0" if "ACL" in what else f"redis://127.0.0.1:{port}/0")


ACLS = {
    "an ACL without LPUSH": ("~*", "&*", "+@all", "-lpush"),
    "an ACL without its keys": ("~other:*", "&*", "+@all"),
    "an ACL without anything": ("~*",),
}
REFUSED = {
    "a password": "password", "another password": "password", "few databases": "database of the number",
    "a TLS port": "rediss://", "a plain port": "speaks no TLS", "a Sentinel": "Sentinel", "a Cluster": "Cluster",
    **dict.fromkeys(ACLS, "ACL"),
}  # fmt: skip


_QUICK = ("another password", "a TLS port", "an ACL without LPUSH")


@pytest.mark.parametrize(
    "what", [what if what in _QUICK else pytest.param(what, marks=pytest.mark.slow) for what in REFUSED]
)
def test_what_waiting_does_not_mend_is_refused_before_anything_is_stored(tmp_path: Path, what: str) -> None:
    with server(tmp_path, what) as url:
        commands = Commands(tmp_path, redis_url=url)
        done = commands.enqueue()
    assert done.returncode == 1
    (line,) = done.stderr.strip().split("\n")
    assert line.startswith("Error: the broker cannot be used: ")
    assert REFUSED[what] in line
    assert not (tmp_path / "state" / "farm.sqlite").exists()


WAITED_FOR: dict[str, tuple[Callable[[Client], object], Callable[[Client], object], str]] = {
    "full": (lambda c: c.config_set("maxmemory", 1), lambda c: c.config_set("maxmemory", 0), "it is full"),
    "read-only": (lambda c: c.replicaof("127.0.0.1", 1), lambda c: c.replicaof("NO", "ONE"), "read-only replica"),
    "too few replicas": (
        lambda c: c.config_set("min-replicas-to-write", 1),
        lambda c: c.config_set("min-replicas-to-write", 0),
        "too few replicas",
    ),
}


@pytest.mark.parametrize(
    "how", [how if how == "full" else pytest.param(how, marks=pytest.mark.slow) for how in WAITED_FOR]
)
def test_what_may_pass_is_waited_for_and_named(tmp_path: Path, how: str) -> None:
    begin, end, said = WAITED_FOR[how]
    with tcp_redis(tmp_path) as client:
        commands = Commands(tmp_path, redis_url=open_to_all(client))
        begin(client)
        with commands.enqueueing() as process:
            assert process.says("waiting for Redis at 127.0.0.1"), process.said
            assert said in process.said
            end(client)
            assert process.wait() == 0, process.said
        assert (
            sum(client.llen(key) for key in client.scan_iter(f"{PREFIX}*/*", _type="list"))
            == commands.status()["pending"]
            > 0
        )


def test_a_server_that_is_away_is_waited_for_and_named(tmp_path: Path) -> None:
    port = free_port()
    commands = Commands(tmp_path, redis_url=f"redis://:hush@127.0.0.1:{port}/0")
    with commands.enqueueing() as process:
        assert process.says(f"waiting for Redis at 127.0.0.1:{port}"), process.said
        with running(tmp_path, port, "--requirepass", "hush"):
            assert process.wait() == 0, process.said
    assert "hush" not in process.said


@pytest.mark.slow
def test_a_server_that_hangs_is_named(tmp_path: Path) -> None:
    with tcp_redis(tmp_path) as client:
        commands = Commands(tmp_path, redis_url=open_to_all(client))
        client.client_pause(600_000)
        with commands.enqueueing() as process:
            assert process.says("waiting for Redis at 127.0.0.1"), process.said
