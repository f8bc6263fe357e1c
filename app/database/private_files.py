"""Files of the state, which are their owner's alone whatever the umask says, and folders that others may have made.

What lies under a state folder is data of the user's (descriptions, paths, an open socket): 0700 for folders that we
make, 0600 for files.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO

from app.errors import StateError

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make_private_folder(folder: Path) -> Path:
    """Make the folder, for its owner alone; one that is there keeps its mode. Raises OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def take_back(folder: Path) -> None:
    """Take away the rights that others have in a folder of ours. Raises StateError where it is not ours."""
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and found.st_mode & _OTHERS:
        folder.chmod(0o700)
    refuse_foreign_folder(folder)


def make_private_file(path: Path) -> None:
    """Make an empty file for its owner alone; of one that is ours, take the rights away that others have."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    found = path.stat()
    if found.st_uid == os.getuid() and stat.S_ISREG(found.st_mode) and found.st_mode & _OTHERS:
        path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)


def open_private(path: Path) -> IO[str]:
    """The file, emptied, to be written or locked; for its owner alone. Raises OSError."""
    make_private_file(path)
    return path.open("w", encoding="utf-8")


def refuse_foreign_folder(folder: Path) -> None:
    """See to it that nobody else could have put into the folder what we take for ours; a missing one is no danger.

    Raises StateError where it is a link, another user's, or may be written by others.
    """
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise StateError(f"{folder}: {error.strerror}") from None
    what = None
    if not stat.S_ISDIR(found.st_mode):
        what = "is not a folder, or is a link to one"
    elif found.st_uid != os.getuid():
        what = f"belongs to another user (uid {found.st_uid})"
    elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        what = f"may be written by other users (mode {stat.S_IMODE(found.st_mode):04o}); `chmod 700` it"
    if what:
        raise StateError(f"{folder} {what}: who made it could answer in place of the farm's own broker")
