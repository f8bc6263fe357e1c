"""Threads that a worker process cannot live without: one that dies ends the process, loudly.

A process whose leases are renewed no more, or whose outcomes nobody commits, would look alive and do harm; its
supervisor starts a new one in a second.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from threading import Thread

from workers.exit_codes import EXIT_HELPER_DIED

log = logging.getLogger(__name__)


def start_helper(loop: Callable[[], None], name: str, died: Callable[[str], None] | None = None) -> Thread:
    """Run ``loop`` in a thread of its own; whatever it raises, ``died`` is told, by default to end the process."""

    def run() -> None:
        try:
            loop()
        except BaseException as error:
            log.critical("the thread %r died, this process ends (exit %d)", name, EXIT_HELPER_DIED, exc_info=error)
            (died or _end_process)(name)

    thread = Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


def _end_process(_name: str) -> None:
    logging.shutdown()
    os._exit(EXIT_HELPER_DIED)  # leases end by themselves, or the launcher frees them at once
