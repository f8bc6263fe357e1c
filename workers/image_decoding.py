"""Image files to RGB: confined to the image root, limited in size, every mode brought to 8 bits."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from app.boxes import Frame
from app.errors import FailureReason, ImageError
from app.images import (
    FORMATS,
    UNREADABLE,
    ImageFileMissing,
    ImageHeader,
    ImageHeaderError,
    ImageRoot,
    PathLeavesRoot,
    Prefixes,
    open_regular,
    read_header,
)
from app.settings import Settings
from workers.image_readers import watched

_TURN = {  # what EXIF asks a viewer to do (CIPA DC-008, orientation)
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURN_BACK = _TURN | {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


@dataclass(frozen=True)
class ImageFile:
    """An image on disk, its header read, not yet decoded."""

    path: Path
    size: int  # bytes
    mtime_ns: int  # time of change
    header: ImageHeader

    @property
    def key(self) -> str:
        """Of the content as far as the file system tells: path, size, time of change."""
        mark = f"{self.path}\n{self.size}\n{self.mtime_ns}"
        return hashlib.sha256(mark.encode("utf-8", "surrogateescape")).hexdigest()[:24]

    def sha256(self) -> str:
        """Of the file's bytes, 64 hexadecimal digits; read once per image. Raises ImageError."""
        try:
            return _content(self.path, self.size, self.mtime_ns)
        except OSError as error:
            raise ImageError(FailureReason.IMAGE_UNREADABLE, f"{self.path.name}: {_said(error)}") from None


def image_place(image_root: str, prefixes: Prefixes, path: str, settings: Settings) -> tuple[ImageRoot, str]:
    """Under which root this host looks for a path that a source holds, and for which.

    This host's root goes before its prefixes, and these before the root that the producer saw.
    """
    if settings.image_root is not None:
        return _root(str(settings.image_root), settings.prefixes), path
    if settings.prefixes:
        return _root(image_root, settings.prefixes), os.path.join(image_root, path)
    return _root(image_root, prefixes), path


def open_image(root: Path | ImageRoot, relative: str, max_pixels: int) -> ImageFile:
    """Look at an image's header. Raises ImageError: outside the root, missing, no image, too many pixels."""
    root = root if isinstance(root, ImageRoot) else _root(str(root))
    path = _confined(root, relative)
    try:
        stat = path.stat()
        header = _header(path, stat.st_size, stat.st_mtime_ns)
    except ImageHeaderError as error:
        raise ImageError(
            FailureReason.IMAGE_TOO_LARGE if error.too_large else FailureReason.IMAGE_UNREADABLE, f"{relative}: {error}"
        ) from None
    except OSError as error:
        raise ImageError(FailureReason.IMAGE_UNREADABLE, f"{relative}: {_said(error)}") from None
    width, height = header.stored
    if width * height > max_pixels:
        raise ImageError(
            FailureReason.IMAGE_TOO_LARGE, f"{relative}: {width}x{height} is more than {max_pixels} pixels"
        )
    return ImageFile(path, stat.st_size, stat.st_mtime_ns, header)


def open_watched(path: Path) -> io.BufferedReader:
    """``open_regular``, under the watch of this thread's reader."""
    return watched(open_regular(path))


@lru_cache(maxsize=4096)
def _header(path: Path, _size: int, _mtime_ns: int) -> ImageHeader:
    """Read once per image, not once per pair: all pairs of an image come one after another."""
    return read_header(path, open_watched)


@lru_cache(maxsize=4096)
def _content(path: Path, _size: int, _mtime_ns: int) -> str:
    with open_watched(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_image(file: ImageFile, frame: Frame) -> Image.Image:
    """Decode to RGB, in the stored frame or turned upright by EXIF. Raises ImageError.

    Transparent pixels show white, as on a page; 16-bit grey keeps its upper 8 bits; of an animation the first frame.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with open_watched(file.path) as opened, Image.open(opened, formats=FORMATS) as image:
                image.load()
                return _to_rgb(_turned(image, file.header, frame))
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        raise ImageError(FailureReason.IMAGE_UNREADABLE, f"{file.path.name}: {_said(error)}") from None


def _turned(image: Image.Image, header: ImageHeader, frame: Frame) -> Image.Image:
    """The image in a frame, by the header's orientation alone: Pillow has turned a TIFF by itself, and nothing else."""
    is_upright = header.format == "TIFF"
    if header.orientation == 1 or is_upright == (frame == "upright"):
        return image
    return image.transpose((_TURN_BACK if is_upright else _TURN)[header.orientation])


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        deep = np.asarray(image).astype(np.int64)
        return Image.fromarray((deep.clip(0, 65_535) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _confined(root: ImageRoot, relative: str) -> Path:
    if os.path.normpath(relative) == os.curdir:
        raise ImageError(FailureReason.IMAGE_MISSING, f"{relative!r} names no file under {root.folder}")
    try:
        return root.locate(relative)
    except PathLeavesRoot as error:
        raise ImageError(FailureReason.IMAGE_OUTSIDE, str(error)) from None
    except ImageFileMissing as error:
        raise ImageError(FailureReason.IMAGE_MISSING, f"{relative} is not under {root.folder}: {error}") from None
    except (OSError, ValueError) as error:  # a NUL byte, too long a name, a ring of links
        raise ImageError(FailureReason.IMAGE_UNREADABLE, f"{relative!r}: {_said(error)}") from None


@lru_cache(maxsize=64)
def _root(folder: str, prefixes: Prefixes = ()) -> ImageRoot:
    return ImageRoot(Path(folder), prefixes)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
