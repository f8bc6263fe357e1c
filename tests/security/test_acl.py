"""The ACL of docs/cluster.md is all that the farm needs: producer, workers and results with exactly these rights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Commands
from tests.support.processes import CHECKOUT
from tests.support.tcp_redis import tcp_redis
from tests.support.waits import comes_true

_RULE = re.compile(r"^ACL SETUSER (\S+) (.+)$", re.MULTILINE)


def denied(client: Any) -> list[Any]:
    """What the server has refused."""
    return list(client.execute_command("ACL", "LOG"))


@pytest.mark.slow
def test_a_farm_runs_with_exactly_the_documented_rights(tmp_path: Path) -> None:
    ((name, rules),) = _RULE.findall((CHECKOUT / "docs" / "cluster.md").read_text())
    client: Any
    with tcp_redis(tmp_path) as client:
        client.execute_command("ACL", "SETUSER", name, *rules.replace("PASSWORD", "pw").split())
        client.execute_command("ACL", "SETUSER", "default", "nopass")
        port = client.get_connection_kwargs()["port"]
        commands = Commands(tmp_path, redis_url=f"redis://{name}:pw@127.0.0.1:{port}/0")
        assert commands.enqueue().returncode == 0, commands.printed
        client.rpush(next(client.scan_iter("farm:*/*/*", _type="list")), b"garbage")
        client.set("farm:unacked", "no hash: to be renamed")
        with commands.worker() as worker:
            done = comes_true(lambda: commands.status()["pending"] == 0, unless=lambda: bool(denied(client)))
            assert done, (denied(client), worker.said[-3000:])
            inspected = commands.command("celery", "-A", "workers", "inspect", "ping", "--timeout", "3")
            assert inspected.returncode == 0, inspected.stderr
        assert commands.status()["dead_letters"] == 1
        assert commands.command("producer", "cancel", "default").returncode == 0
        assert denied(client) == []
