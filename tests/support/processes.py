"""One child process with its log, which ends with whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from app.processes import die_with_parent
from tests.support.waits import PATIENCE_S, comes_true

CHECKOUT = Path(__file__).parents[2]


def _as_from_a_terminal() -> None:
    """Run in the child: it dies with the test run, and has no signal ignored that whoever started that ignores."""
    for number in (signal.SIGHUP, signal.SIGINT):  # nohup ignores the one, a shell's background jobs the other
        signal.signal(number, signal.SIG_DFL)
    die_with_parent(signal.SIGKILL)


class Process:
    """A running command, in a process group of its own; it dies with the test run, however that ends (Linux)."""

    def __init__(self, command: Sequence[str | Path], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, env=environment, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, preexec_fn=_as_from_a_terminal,
            )  # fmt: skip
        self.pid = self._process.pid

    @property
    def said(self) -> str:
        """What it has logged."""
        return self.log.read_text(errors="replace")

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.exit_code is None

    def says(self, *words: str, within: float = PATIENCE_S) -> bool:
        """Whether its log comes to hold one of these words; False where it ends without."""
        return comes_true(lambda: any(word in self.said for word in words), within, unless=lambda: not self.alive)

    def signal(self, number: int) -> None:
        """Send a signal to the process alone."""
        self._process.send_signal(number)

    def wait(self, seconds: float = PATIENCE_S) -> int:
        """Its exit code. Raises subprocess.TimeoutExpired."""
        return self._process.wait(seconds)

    def stop(self, seconds: float = 60.0) -> int:
        """SIGTERM, and SIGKILL where that does not end it in time; gives the exit code."""
        self.signal(signal.SIGTERM)
        try:
            return self.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.wait()

    def kill(self) -> None:
        """End its whole process group."""
        if self.alive:
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()


def lives(pid: int) -> bool:
    """Whether any process of this number runs; one that has ended and is not yet collected does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return not Path("/proc/self").exists()  # it has just ended, or there is no /proc on this system


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
