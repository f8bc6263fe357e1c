"""The whole farm against servers with TLS and passwords; whatever it prints or shows, it does not show those."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Commands
from tests.support.tls_servers import PASSWORD, Authority, TLSServer
from tests.support.waits import comes_true


@dataclass(frozen=True)
class Story:
    """What was seen of one run: its last status and all that was printed."""

    status: dict[str, Any]
    exit_code: int
    printed: str
    command_lines: set[str]


@pytest.fixture(scope="module")
def story(secure_redis: TLSServer, secure_postgresql: TLSServer, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Enqueue, a real ``celery worker`` at debug level, questions to it, status, export."""
    commands = Commands(tmp_path_factory.mktemp("farm"), secure_redis.redis_url(), secure_postgresql.database_url())
    assert commands.enqueue().returncode == 0
    with commands.worker() as worker:
        assert worker.says("ready, up to"), worker.said[-3000:]
        assert comes_true(lambda: commands.status()["pending"] == 0, 120, unless=lambda: not worker.alive), worker.said[
            -3000:
        ]
        for question in ("conf", "report"):
            assert commands.command("celery", "-A", "workers", "inspect", question).returncode == 0
    status = commands.status()
    assert commands.command("results", "export", "--out", str(commands.folder / "out.json")).returncode == 0
    return Story(status, worker.exit_code or 0, "\n".join(commands.printed), commands.command_lines)


def test_every_pair_is_done_over_tls_and_the_worker_ends_cleanly(story: Story) -> None:
    assert (story.status["done"], story.status["failed"], story.exit_code) == (story.status["expected"], 0, 0)
    assert story.status["done"] > 0


def test_no_log_and_no_answer_holds_a_password(story: Story) -> None:
    assert "ready" in story.printed
    assert "farm" in story.printed
    assert _around("hush", story.printed) == []


def test_no_command_line_holds_a_password(story: Story) -> None:
    assert any("celery" in line for line in story.command_lines)
    assert [line for line in story.command_lines if "hush" in line] == []


def test_launched_workers_wait_for_a_redis_that_refuses_them_and_do_not_say_the_password(
    secure_redis: TLSServer, tmp_path: Path
) -> None:
    commands = Commands(tmp_path, redis_url=secure_redis.redis_url(password=PASSWORD + "!"))
    with commands.running("workers", "up", "--num-gpus", "0") as workers:
        assert workers.says("invalid username-password")
    assert workers.exit_code == 0
    assert any("-A workers worker" in line for line in commands.command_lines)
    assert [line for line in commands.command_lines if "hush" in line] == []
    assert _around("hush", "\n".join(commands.printed)) == []


@pytest.mark.parametrize("wrong", ["password", "authority"])
@pytest.mark.parametrize("server", ["redis", "postgresql"])
def test_a_refused_producer_says_why_in_a_line_and_not_the_password(
    server: str, wrong: str, secure_redis: TLSServer, secure_postgresql: TLSServer, stranger: Authority, tmp_path: Path
) -> None:
    mistake: dict[str, Any] = {"password": PASSWORD + "!"} if wrong == "password" else {"trusts": stranger}
    redis_url = secure_redis.redis_url(**mistake if server == "redis" else {})
    database_url = secure_postgresql.database_url(**mistake) if server == "postgresql" else None
    commands = Commands(tmp_path, redis_url, database_url)
    refused = commands.enqueue()
    assert refused.returncode == 1
    last = refused.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: the broker cannot be used" if server == "redis" else "Error: the database does not")
    assert ("certificate verify failed" if wrong == "authority" else "password") in last
    assert "Traceback" not in refused.stderr
    assert _around("hush", "\n".join(commands.printed)) == []


def _around(word: str, text: str) -> list[str]:
    """The lines in which a word stands, cut to where it stands: what a failure shows."""
    return [line[max(0, line.find(word) - 60) :][:160] for line in text.splitlines() if word in line]
