"""Where image files lie: paths confined to one root, and what an image's header says: one reader of each."""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from app.errors import FarmError

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


class PathLeavesRoot(FarmError, ValueError):
    """An image path points outside the image root; it is never opened."""


class ImageFileMissing(FarmError, ValueError):
    """There is no regular file where an image path points."""


Prefixes = tuple[tuple[str, str], ...]
"""Beginnings of paths and the folders that stand in their place here: ((old, new), ...)."""


class ImageRoot:
    """A folder that image paths are relative to and must not leave, by ``..``, absolutely or by links.

    Paths that were written on another machine are understood: ``file://`` addresses, backslashes where no file has
    that name, and, with ``prefixes``, the folders of that machine. What a prefix leads to is a root of its own.
    """

    def __init__(self, folder: Path, prefixes: Prefixes = ()) -> None:
        """The folder need not exist as long as no file is looked for."""
        self.folder = os.path.abspath(folder)
        # The longest old beginning wins.
        self._prefixes = sorted(((_plain(old), os.path.abspath(new)) for old, new in prefixes), key=_length)
        self._roots = [(root, os.path.realpath(root)) for root in (self.folder, *(new for _, new in self._prefixes))]
        self._real_parent = lru_cache(maxsize=4096)(os.path.realpath)

    def relative(self, path: str) -> str:
        """The path as it is kept: relative to the root, normal form, posix separators. Looks at no file's content.

        An absolute path is taken where it lies under the root, as the root was given or with its links resolved; one
        that a prefix leads to stays absolute.

        Raises:
            PathLeavesRoot: it lies elsewhere, or is the root itself.
        """
        full = os.path.normpath(os.path.join(self.folder, self._understood(path)))
        for root in self._roots[0]:
            if full != root and os.path.commonpath((full, root)) == root:
                return Path(os.path.relpath(full, root)).as_posix()
        if any(full != root and os.path.commonpath((full, root)) == root for roots in self._roots for root in roots):
            return Path(full).as_posix()
        raise PathLeavesRoot(f"{path!r} leaves the image root {self.folder!r}")

    def locate(self, relative: str) -> Path:
        """The file of a path that ``relative`` gave: one look at the file, its folder's links resolved once.

        Raises:
            PathLeavesRoot: a link on the way leads out of the root.
            ImageFileMissing: there is no regular file.
        """
        return self.find(relative)[0]

    def find(self, relative: str) -> tuple[Path, os.stat_result]:
        """As ``locate``, with what the system knows of the file."""
        path = os.path.join(self.folder, self.relative(relative))
        try:
            found = os.lstat(path)
            parent = self._real_parent(os.path.dirname(path))
            real = os.path.join(parent, os.path.basename(path))
            if stat.S_ISLNK(found.st_mode):
                real = os.path.realpath(path)
                found = os.stat(path)
        except (OSError, ValueError) as error:  # ValueError: a name that this system's encoding cannot write
            raise ImageFileMissing(getattr(error, "strerror", None) or str(error)) from error
        if not any(os.path.commonpath((real, root)) == root for _, root in self._roots):
            raise PathLeavesRoot(f"{relative!r} leads out of the image root {self.folder!r} by a link")
        if not stat.S_ISREG(found.st_mode):
            raise ImageFileMissing("not a regular file")
        return Path(path), found

    def _understood(self, path: str) -> str:
        if "\\" in path and not os.path.lexists(os.path.join(self.folder, path)):
            path = path.replace("\\", "/")
        path = _plain(path)
        for old, new in self._prefixes:
            if _begins(path, old) and (len(path) == len(old) or old.endswith("/") or path[len(old)] == "/"):
                return new + "/" + path[len(old) :].lstrip("/")
        return path


def _plain(path: str) -> str:
    """A path without the scheme of a file's address."""
    if path.startswith("file://"):
        address = urlsplit(path)
        path = unquote(address.path)
        path = path[1:] if _WINDOWS.match(path[1:]) else path  # file:///C:/...
    return path.replace("\\", "/") if _WINDOWS.match(path) else path


def _begins(path: str, old: str) -> bool:
    """Whether a path begins with a prefix; for Windows, capitals and small letters are one."""
    start = path[: len(old)]
    return start == old or (bool(_OF_WINDOWS.match(old)) and start.casefold() == old.casefold())


def _length(prefix: tuple[str, str]) -> int:
    return -len(prefix[0])


_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_OF_WINDOWS = re.compile(r"[A-Za-z]:|//")  # with its backslashes turned


FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What is opened, whatever a file's name says: Pillow would start other programs for some formats (PostScript).

MPO, which phones write, comes with JPEG."""

_ORIENTATION = 0x0112  # the EXIF tag
_PNG_START = b"\x89PNG\r\n\x1a\n"


class ImageHeaderError(FarmError, ValueError):
    """A file's header is not that of an image; ``too_large`` where it promises more than may be decoded."""

    def __init__(self, detail: str, *, too_large: bool = False) -> None:
        super().__init__(detail)
        self.too_large = too_large


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What a file says of its image before a pixel is decoded."""

    stored: tuple[int, int]  # as the file keeps it
    orientation: int  # of EXIF, 1 to 8; 1 where there is none, or none that can be read
    format: str

    @property
    def upright(self) -> tuple[int, int]:
        """The size after the EXIF orientation."""
        width, height = self.stored
        return (height, width) if self.orientation >= 5 else (width, height)

    def size(self, frame: str) -> tuple[int, int]:
        """Width and height of a frame."""
        return self.upright if frame == "upright" else self.stored


def open_regular(path: Path) -> int:
    """A handle for reading a regular file; nothing else is waited for, whatever took the file's place.

    Raises OSError.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return handle


def _open(path: Path) -> BinaryIO:
    return os.fdopen(open_regular(path), "rb")


def read_header(path: Path, open_file: Callable[[Path], BinaryIO] = _open) -> ImageHeader:
    """The one reader of image headers: the producer's boxes and the worker's pixels go by the same answer.

    ``open_file`` opens the file; who reads it in a thread that may hang has his own.

    Raises:
        ImageHeaderError: it is no image that we open, or one of more pixels than Pillow would decode.
    """
    from PIL import Image  # late: most who import this module never open an image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with open_file(path) as file, Image.open(file, formats=FORMATS) as image:
                orientation = _png_orientation(file) if image.format == "PNG" else _orientation(image)
                stored, form = image.size, str(image.format)
    except Image.DecompressionBombError as error:
        raise ImageHeaderError(str(error), too_large=True) from None
    except UNREADABLE as error:
        raise ImageHeaderError(f"{type(error).__name__}: {error}") from None
    if form == "TIFF" and orientation >= 5:  # Pillow gives such a file's size as it is after turning
        stored = stored[1], stored[0]
    return ImageHeader(stored, orientation, form)


def _orientation(image: Any) -> int:
    """The EXIF orientation; a broken EXIF block spoils no image."""
    try:
        return _valid(image.getexif().get(_ORIENTATION))
    except UNREADABLE:
        return 1


def _valid(orientation: object) -> int:
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _png_orientation(file: BinaryIO) -> int:
    """A PNG's orientation from its eXIf chunk, wherever that stands: Pillow would decode all pixels to find it."""
    from PIL import Image

    file.seek(0)
    if file.read(8) != _PNG_START:
        return 1
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            exif = Image.Exif()
            try:
                exif.load(b"Exif\x00\x00" + file.read(length))
            except UNREADABLE:
                return 1
            return _valid(exif.get(_ORIENTATION))
        if kind == b"IEND":
            return 1
        file.seek(length + 4, os.SEEK_CUR)
    return 1
