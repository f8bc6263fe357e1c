"""File systems that never answer: what a network share is whose server is gone, over one file or a whole folder."""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DETACH = 2  # MNT_DETACH of umount2(2)


class CannotMount(Exception):
    """This machine lets nobody mount (no root, no /dev/fuse); the message says what failed."""


@contextmanager
def dead_mount(path: Path) -> Iterator[None]:
    """Whoever looks at the path waits until the block ends, and then gets an error. Raises CannotMount.

    A FUSE file system whose daemon never says a word (fuse(4)): the kernel keeps each request until the daemon has
    introduced itself.
    """
    mode = stat.S_IFDIR if path.is_dir() else stat.S_IFREG
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        daemon = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise CannotMount(f"/dev/fuse: {error.strerror}") from None
    options = f"fd={daemon},rootmode={mode:o},user_id=0,group_id=0"
    target = os.fsencode(path)
    try:
        if libc.mount(b"nobody", target, b"fuse", 0, options.encode()):
            raise CannotMount(f"mount: {os.strerror(ctypes.get_errno())}")
        try:
            yield
        finally:
            libc.umount2(target, _DETACH)
    finally:
        os.close(daemon)  # which ends the connection, and with it every request that waits
