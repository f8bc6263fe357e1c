"""Small pictures for people: in the frame that the boxes are in, never larger than asked for."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.images import (
    FORMATS,
    UNREADABLE,
    ImageFileMissing,
    ImageHeaderError,
    ImageRoot,
    PathLeavesRoot,
    read_header,
)

if TYPE_CHECKING:
    from PIL.Image import Image

_ORIENTATION = 0x0112  # the EXIF tag
_QUALITY = 80
_MOST_PIXELS = 178_956_970  # Pillow's own limit; a picture above it is left out


@dataclass(frozen=True)
class Thumbnail:
    """A JPEG, and the size in pixels of the frame that it shows."""

    jpeg: bytes
    frame_size: tuple[int, int]


def thumbnail(places: Iterable[tuple[ImageRoot, str]], frame: str | None, longest: int) -> Thumbnail | None:
    """The picture at the first of these places (root and path) that has one; None where none can be shown."""
    for root, path in places:
        try:
            return _made(root.locate(path), frame, longest)
        except (PathLeavesRoot, ImageFileMissing, ImageHeaderError, *UNREADABLE):
            continue
    return None


def _made(path: Path, frame: str | None, longest: int) -> Thumbnail | None:
    from PIL import Image as pillow

    header = read_header(path)
    upright = frame == "upright"
    if header.stored[0] * header.stored[1] > _MOST_PIXELS:
        return None
    if header.format == "TIFF" and header.orientation != 1 and not upright:
        return None  # Pillow turns it by itself, and the boxes are in the frame that it is not shown in
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pillow.DecompressionBombWarning)
        with pillow.open(path, formats=FORMATS) as image:
            image.draft("RGB", (longest, longest))  # a large JPEG is decoded at a fraction of its size
            shown = image.convert("RGBA") if image.has_transparency_data else image.convert("RGB")
            if upright and header.format != "TIFF":
                shown = _turned(shown, header.orientation)
    shown.thumbnail((longest, longest))
    if shown.mode == "RGBA":
        shown = pillow.alpha_composite(pillow.new("RGBA", shown.size, "white"), shown)
    buffer = io.BytesIO()
    shown.convert("RGB").save(buffer, "JPEG", quality=_QUALITY)
    return Thumbnail(buffer.getvalue(), header.upright if upright else header.stored)


def _turned(image: Image, orientation: int) -> Image:
    """The image upright, by the orientation that the one reader of headers found."""
    from PIL import ImageOps

    exif = image.getexif()
    exif.clear()
    exif[_ORIENTATION] = orientation
    return ImageOps.exif_transpose(image)
