"""``python -P -m workers.start -A workers worker``: the ``celery`` command, but with this package for sure.

Celery looks for ``-A workers`` with the current folder first on the path. Here ours is loaded before it looks.
"""

from __future__ import annotations

import signal
import sys
from importlib import import_module


def main() -> None:
    """Become ``celery``; a SIGTERM that comes while it is still imported ends it like one that comes later."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    import_module("workers.celery")
    from celery.bin.celery import main as celery

    sys.argv[0] = "celery"
    sys.exit(celery())


if __name__ == "__main__":
    main()
