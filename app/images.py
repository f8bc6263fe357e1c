"""Where image files lie: paths confined to one root, and what an image's header says of its size."""

from __future__ import annotations

import os
import stat
import struct
import warnings
from functools import lru_cache
from pathlib import Path

from app.boxes import Size

#: What Pillow's format readers raise on broken headers.
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    AttributeError,
    struct.error,
)


class PathLeavesRoot(ValueError):
    """An image path points outside the image root; it is never opened."""


class ImageFileMissing(ValueError):
    """There is no regular file where an image path points."""


class ImageRoot:
    """A folder that image paths are relative to and must not leave, by ``..``, absolutely or by links."""

    def __init__(self, folder: Path) -> None:
        """The folder need not exist as long as no file is looked for."""
        self.folder = os.path.abspath(folder)
        self._real = os.path.realpath(self.folder)
        self._real_parent = lru_cache(maxsize=4096)(os.path.realpath)

    def relative(self, path: str) -> str:
        """The path as it is kept: relative to the root, normal form, posix separators. Looks at no file.

        An absolute path is taken where it lies under the root, as the root was given or with its links
        resolved.

        Raises:
            PathLeavesRoot: it lies elsewhere.
        """
        full = os.path.normpath(os.path.join(self.folder, path))
        for root in (self.folder, self._real):
            if full != root and os.path.commonpath((full, root)) == root:
                return Path(os.path.relpath(full, root)).as_posix()
        raise PathLeavesRoot(f"{path!r} leaves the image root {self.folder!r}")

    def locate(self, relative: str) -> Path:
        """The file of a path that ``relative`` gave: one look at the file, its folder's links resolved once.

        Raises:
            PathLeavesRoot: a link on the way leads out of the root.
            ImageFileMissing: there is no regular file.
        """
        path = os.path.join(self.folder, self.relative(relative))
        try:
            mode = os.lstat(path).st_mode
            parent = self._real_parent(os.path.dirname(path))
            real = os.path.join(parent, os.path.basename(path))
            if stat.S_ISLNK(mode):
                real = os.path.realpath(path)
                mode = os.stat(path).st_mode
        except (OSError, ValueError) as error:  # ValueError: a name that this system's encoding cannot write
            raise ImageFileMissing(getattr(error, "strerror", None) or str(error)) from error
        if os.path.commonpath((real, self._real)) != self._real:
            raise PathLeavesRoot(f"{relative!r} leads out of the image root {self.folder!r} by a link")
        if not stat.S_ISREG(mode):
            raise ImageFileMissing("not a regular file")
        return Path(path)


def image_sizes(path: Path) -> tuple[Size, Size] | None:
    """An image's size as stored and as turned upright by its EXIF orientation, from its header alone.

    None where the header cannot be read: what is wrong with such a file shows when it is decoded. Pillow
    turns a TIFF by itself, so its sizes are one.
    """
    from PIL import Image  # late: most who import this module never open an image

    unreadable: tuple[type[Exception], ...] = (*UNREADABLE, Image.DecompressionBombError)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                # getexif() decodes a whole PNG in search of a late tag; a header is all that is wanted here.
                decodes = image.format == "PNG" and "exif" not in image.info
                turned = not decodes and image.format != "TIFF" and image.getexif().get(0x0112) in (5, 6, 7, 8)
                width, height = image.size
    except unreadable:
        return None
    return (width, height), ((height, width) if turned else (width, height))
