"""The farm's own commands as a user runs them: every word that they print is kept and can be searched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.processes import CHECKOUT, Process

_BIN = Path(sys.executable).parent
SCENES = CHECKOUT / "demo" / "scenes"


@dataclass
class Commands:
    """Commands with the same broker, database and state folder."""

    folder: Path
    redis_url: str | None = None
    database_url: str | None = None
    printed: list[str] = field(default_factory=list)
    command_lines: set[str] = field(default_factory=set)

    def command(self, name: str, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command of this environment to its end."""
        done = subprocess.run(
            [_BIN / name, *arguments], cwd=CHECKOUT, env=self._environment(), timeout=timeout,
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        self.printed += [done.stdout, done.stderr]
        return done

    def enqueue(self) -> subprocess.CompletedProcess[str]:
        """Put the first of the demo's scenes into the queue, with short answers."""
        return self.command("producer", *self._enqueue())

    def enqueueing(self) -> AbstractContextManager[Process]:
        """The same, while it runs."""
        return self.running("producer", *self._enqueue())

    def _enqueue(self) -> tuple[str, ...]:
        candidates = json.loads((SCENES / "recall_results.json").read_text())["per_image_top100_candidates"]
        few = self.folder / "few.json"
        few.write_text(json.dumps({"per_image_top100_candidates": dict(list(candidates.items())[:1])}))
        return (
            "enqueue", "--stage1-result", str(few),
            "--input-data", str(SCENES / "images.json"), "--top-k", "1", "--max-new-tokens", "4", "--json",
        )  # fmt: skip

    def status(self) -> dict[str, Any]:
        """What ``results status --json`` says."""
        done = self.command("results", "status", "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    def worker(self) -> AbstractContextManager[Process]:
        """A ``celery worker`` that says all it can."""
        return self.running("celery", "-A", "workers", "worker", "--loglevel", "DEBUG")

    @contextmanager
    def running(self, name: str, *arguments: str) -> Iterator[Process]:
        """A command that is stopped by SIGTERM at the end; its log is kept."""
        process = Process([_BIN / name, *arguments], self._environment(), self.folder / f"{name}.log")
        try:
            yield process
        finally:
            self.command_lines |= command_lines()
            process.stop()
            self.printed.append(process.said)

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
        urls = {"REDIS_URL": self.redis_url, "DATABASE_URL": self.database_url}
        for name in urls:
            kept.pop(name, None)
        return kept | {name: url for name, url in urls.items() if url} | {
            "FARM_STATE_DIR": str(self.folder / "state"), "FARM_DEVICE": "cpu", "FARM_THREADS": "1",
            "FARM_SHUTDOWN_GRACE_S": "1", "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip


def command_lines() -> set[str]:
    """Of every process on this machine whose command line can be read: what ``ps`` shows to everybody."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # it has ended
    return found
