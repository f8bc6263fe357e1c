"""Image files to RGB: confined to the image root, limited in size, every mode brought to 8 bits."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from app.images import UNREADABLE

_ORIENTATION = 0x0112  # the EXIF tag
_SIDEWAYS = (5, 6, 7, 8)


class ImageError(Exception):
    """An image that cannot be used; ``reason`` is one of a few, the message holds the particulars."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class ImageFile:
    """An image on disk, its header read, not yet decoded."""

    path: Path
    key: str  # of the content as far as the file system tells: path, size, time of change
    stored: tuple[int, int]  # width and height in pixels, as stored
    upright: tuple[int, int]  # the same after the EXIF orientation


def open_image(root: Path, relative: str, max_pixels: int) -> ImageFile:
    """Look at an image's header. Raises ImageError: outside the root, missing, no source, too many pixels."""
    path = _confined(root, relative)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
            with Image.open(path) as image:
                width, height = image.size
                orientation = image.getexif().get(_ORIENTATION)
        stat = path.stat()
    except Image.DecompressionBombError as error:
        raise ImageError("image too large", f"{relative}: {error}") from None
    except UNREADABLE as error:
        raise ImageError("image unreadable", f"{relative}: {_said(error)}") from None
    if width * height > max_pixels:
        raise ImageError("image too large", f"{relative}: {width}x{height} is more than {max_pixels} pixels")
    upright = (height, width) if orientation in _SIDEWAYS else (width, height)
    mark = f"{path}\n{stat.st_size}\n{stat.st_mtime_ns}"
    key = hashlib.sha256(mark.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return ImageFile(path, key, (width, height), upright)


def load_image(source: ImageFile, *, upright: bool) -> Image.Image:
    """Decode to RGB, in the stored frame or turned upright by EXIF. Raises ImageError.

    Transparent pixels show white, as on a page; 16-bit grey keeps its upper 8 bits; of an animation the first frame.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source.path) as image:
                image.load()
                turned = ImageOps.exif_transpose(image) if upright else image
                return _to_rgb(turned)
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        raise ImageError("image unreadable", f"{source.path.name}: {_said(error)}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        deep = np.asarray(image).astype(np.int64)
        return Image.fromarray((deep.clip(0, 65_535) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _confined(root: Path, relative: str) -> Path:
    try:
        path = (root / relative).resolve()
        inside = path.is_relative_to(root.resolve())
        present = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL byte, too long a name, a ring of links
        raise ImageError("image unreadable", f"{relative!r}: {_said(error)}") from None
    if not inside:
        raise ImageError("image path leaves the root", f"{relative} leads out of {root}")
    if not present:
        raise ImageError("image missing", f"{relative} is not under {root}")
    return path


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
