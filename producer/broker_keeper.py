"""``python -m producer.broker_keeper FOLDER``: sees to an embedded broker whose ``producer run`` cannot.

A command that is killed, or whose terminal is closed, stops nothing. This process waits for its end: its standard input
is a pipe from it, which the system closes however it ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from app.processes import python_command, python_path
from app.queue.embedded import EmbeddedBroker

_SEEN_TO = b"."


@contextmanager
def kept(broker: EmbeddedBroker) -> Iterator[None]:
    """Borrow the broker for as long as the block lasts, or this process lives."""
    keeper = subprocess.Popen(
        python_command("producer.broker_keeper", str(broker.folder)), env={**os.environ, **python_path()},
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        with broker.borrowed():
            yield
    finally:
        with suppress(BrokenPipeError):
            keeper.communicate(_SEEN_TO)


def main() -> None:
    """Wait for the borrower's end; stop the broker if it left that to us."""
    if sys.stdin.buffer.read(1) != _SEEN_TO:
        EmbeddedBroker(Path(sys.argv[1])).stop_when_unused()


if __name__ == "__main__":
    main()
