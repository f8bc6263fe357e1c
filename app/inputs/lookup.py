"""What a pair names, found: its image, the file, its objects; or the reason why it is not to be had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.boxes import Frame, Size, frame_of, is_outside
from app.images import ImageFileMissing, ImageHeaderError, ImageRoot, PathLeavesRoot, read_header
from app.inputs.annotations import ImageEntry, ImageIndex, ImageObject
from app.inputs.box_census import BoxCensus
from app.inputs.drops import Reason
from app.inputs.ids import is_storable


@dataclass(frozen=True, slots=True)
class Dropped:
    """Why a pair cannot become work, and what to show of it in an example."""

    reason: Reason
    shown: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class FoundImage:
    """What all pairs of an image share."""

    entry: ImageEntry
    path: str  # relative to the image root
    size: Size | None = None  # of the frame that its boxes are in; None where it is not known
    frame: Frame | None = None
    stamp: tuple[int, int] = (0, 0)  # bytes and time of change (ns) of the file; zeros where nobody looked

    def record(self, found: ImageObject | None, name: str, missing: Reason) -> dict[str, Any] | Dropped:
        """The record of an object that has a box, inside the image where the image's size is known."""
        if found is None:
            return Dropped(missing, (name,))
        if found.box is None:
            return Dropped(Reason.BAD_BOX, (found.record.get("bbox"),))
        if self.size is not None and is_outside(found.box, self.size):
            return Dropped(Reason.BOX_OUTSIDE, (found.box, self.size))
        return found.record


@dataclass(frozen=True, slots=True)
class Lookup:
    """Finds images by their ids."""

    index: ImageIndex
    root: ImageRoot
    check_files: bool
    census: BoxCensus

    def image(self, image_id: str) -> FoundImage | Dropped:
        """The image, its path and its size, or why none of its pairs can be done."""
        if image_id not in self.index:
            return Dropped(Reason.IMAGE_NOT_IN_INPUT)
        if self.index.is_ambiguous(image_id):
            return Dropped(Reason.IMAGE_AMBIGUOUS)
        entry = self.index.entry(image_id)
        path = entry.image_path
        if not isinstance(path, str) or not path or not is_storable(path):
            return Dropped(Reason.NO_PATH, (path,))
        try:
            relative = self.root.relative(path)
            if self.check_files:
                return self._seen(entry, relative)
            return FoundImage(self._in_pixels(entry, (1, 1)), relative)
        except PathLeavesRoot:
            return Dropped(Reason.PATH_LEAVES_ROOT, (path, self.root.folder))
        except ImageFileMissing as error:
            return Dropped(Reason.FILE_MISSING, (path, str(error)))

    def _seen(self, entry: ImageEntry, relative: str) -> FoundImage | Dropped:
        path, file = self.root.find(relative)
        stamp = file.st_size, file.st_mtime_ns
        try:
            header = read_header(path)
        except ImageHeaderError as error:  # what is wrong with such a file shows when it is decoded
            if self.census.form == "relative":  # once it is mended, shares would be taken for pixels
                return Dropped(Reason.NO_SIZE, (relative, str(error)))
            return FoundImage(self._in_pixels(entry, (1, 1)), relative, stamp=stamp)
        entry = self._in_pixels(entry, header.stored)
        frame = frame_of(entry.extent, header.stored, header.upright)
        self.census.see(entry.written, header.size(frame))
        return FoundImage(entry, relative, header.size(frame), frame, stamp)

    def _in_pixels(self, entry: ImageEntry, size: Size) -> ImageEntry:
        return entry if self.census.form == "xyxy" else entry.in_pixels(self.census.form, size)
