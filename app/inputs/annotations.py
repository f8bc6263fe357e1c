"""The second input, the images and their objects: indexed once by byte offsets, read again image by image."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from app.boxes import Box, BoxFormat, BoxMalformed, Size, extent_of, in_pixels, parse_box
from app.errors import InputError
from app.inputs.drops import Drops, Reason
from app.inputs.ids import canonical_id
from app.inputs.json_stream import JsonStream, decode

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ImageObject:
    """One object of an image."""

    record: JsonObject  # as the file holds it
    box: Box | None  # None where the record holds no box


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One image of the second input. Of several objects of one class, or with one id, the last is kept."""

    order: int  # its place in the file
    image_id: str  # as it is compared
    image_id_json: int | float | str  # as the file wrote it
    image_path: object  # as the file wrote it, unchecked
    by_class: dict[str, ImageObject]
    by_id: dict[str, ImageObject]
    extent: tuple[float, float]  # the farthest right and bottom of all its boxes
    written: tuple[Box, ...] = ()  # its boxes as the file wrote them

    def in_pixels(self, form: BoxFormat, size: Size) -> ImageEntry:
        """The same with all boxes as corners in pixels of an image of that size."""

        def converted(found: ImageObject) -> ImageObject:
            if found.box is None:
                return found
            box = in_pixels(found.record["bbox"], form, size)
            return ImageObject({**found.record, "bbox": list(box)}, parse_box(box))

        by_class, by_id = (
            {name: converted(found) for name, found in objects.items()} for objects in (self.by_class, self.by_id)
        )
        extent = extent_of(in_pixels(box, form, size) for box in self.written)
        return replace(self, by_class=by_class, by_id=by_id, extent=extent)


class ImageIndex:
    """Finds an image's entry by its id; holds about 200 bytes an image, never the file.

    Entries that are no objects or have no usable ``image_id`` are counted and passed over. An id that stands
    there twice with the same content counts once; with different content it is ambiguous, and
    ``is_ambiguous`` says so.
    """

    def __init__(self, file: BinaryIO, name: str, drops: Drops) -> None:
        """Reads the file once; it must stay open. ``name`` is what errors call it.

        Raises:
            InputError: it is not valid JSON, or not a list.
        """
        self.name = name
        self._drops = drops
        self._slots: dict[str, int] = {}
        self._orders, self._offsets, self._lengths = array("Q"), array("Q"), array("Q")
        self._ambiguous: set[str] = set()
        self._used = bytearray()
        self._last: tuple[int, Any] = (-1, None)  # slot and record of what was read last: it is asked for twice
        self._file = file
        if not file.seekable():
            raise InputError(self.name, "the file", None, "must be a regular file: it is read more than once")
        self._index(JsonStream(file, self.name))

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._slots

    def is_ambiguous(self, image_id: str) -> bool:
        """Whether the file holds several different entries under this id."""
        return image_id in self._ambiguous

    def entry(self, image_id: str) -> ImageEntry:
        """The image of that id, its malformed objects counted.

        Raises:
            KeyError: it is not in the file.
            InputError: the file has changed since it was indexed.
        """
        slot = self._slots[image_id]
        record = self._read(slot)
        written = record.get("image_id") if isinstance(record, dict) else None
        if canonical_id(written) != image_id or not isinstance(written, int | float | str):
            raise InputError(self.name, f"image {image_id!r}", None, "the file was changed while it was read")
        by_class, by_id, boxes = self._objects(image_id, record.get("objects"))
        order, path = self._orders[slot], record.get("image_path")
        return ImageEntry(order, image_id, written, path, by_class, by_id, extent_of(boxes), tuple(boxes))

    def record(self, image_id: str) -> Any:
        """The image's record as the file holds it; None where it is not in the file, or not for certain.

        Raises:
            InputError: the file has changed since it was indexed.
        """
        slot = self._slots.get(image_id)
        return None if slot is None or image_id in self._ambiguous else self._read(slot)

    def mark_used(self, image_id: str) -> None:
        """Remember that stage 1 has candidates of this image."""
        self._used[self._slots[image_id]] = 1

    def count_unused(self) -> None:
        """Count the images that stage 1 has no candidates of."""
        for image_id, slot in self._slots.items():
            if not self._used[slot]:
                self._drops.add(Reason.NO_CANDIDATES, "second input, image {}", image_id)

    def _index(self, stream: JsonStream) -> None:
        if stream.starts_with() != "[":
            raise InputError(
                self.name, "top level", stream.starts_with() or "an empty file", "expected a list of images"
            )
        for order, (record, offset, length) in enumerate(stream.elements()):
            image_id = canonical_id(record.get("image_id")) if isinstance(record, dict) else None
            if image_id is None:
                self._count_malformed(order, record)
            elif image_id in self._slots:
                self._compare(image_id, order, record)
            else:
                self._slots[image_id] = len(self._orders)
                self._orders.append(order)
                self._offsets.append(offset)
                self._lengths.append(length)
        stream.end()
        self._used = bytearray(len(self._orders))

    def _count_malformed(self, order: int, record: object) -> None:
        if isinstance(record, dict):
            found, what = record.get("image_id"), "second input, entry {}: 'image_id' is {}"
        else:
            found, what = record, "second input, entry {}: not an object: {}"
        self._drops.add(Reason.MALFORMED_IMAGE, what, order + 1, found)

    def _compare(self, image_id: str, order: int, record: JsonObject) -> None:
        first = self._slots[image_id]
        if _without_id(record) == _without_id(self._read(first)):
            self._drops.add(
                Reason.REPEATED_IMAGE,
                "second input, entries {} and {}: image {}",
                self._orders[first] + 1,
                order + 1,
                image_id,
            )
        else:
            self._ambiguous.add(image_id)

    def _read(self, slot: int) -> Any:
        if self._last[0] == slot:
            return self._last[1]
        self._last = slot, self._read_anew(slot)
        return self._last[1]

    def _read_anew(self, slot: int) -> Any:
        place = f"byte {self._offsets[slot]}"
        try:
            position = self._file.tell()  # the indexing pass reads on from here
            self._file.seek(self._offsets[slot])
            data = self._file.read(self._lengths[slot])
            self._file.seek(position)
            return decode(data.decode("utf-8", "surrogateescape"), 0)[0]
        except OSError as error:
            raise InputError(self.name, place, None, f"cannot be read ({error.strerror})") from error
        except ValueError:
            raise InputError(self.name, place, None, "the file was changed while it was read") from None

    def _objects(
        self, image_id: str, objects: object
    ) -> tuple[dict[str, ImageObject], dict[str, ImageObject], list[Box]]:
        """Objects by class name and by id, and all their boxes."""
        by_class: dict[str, ImageObject] = {}
        by_id: dict[str, ImageObject] = {}
        boxes: list[Box] = []
        if objects is not None and not isinstance(objects, list):
            self._drops.add(Reason.MALFORMED_OBJECT, "second input, image {}: 'objects' is {}", image_id, objects)
        listed = objects if isinstance(objects, list) else []
        for place, record in enumerate(listed, 1):
            name = record.get("class_name") if isinstance(record, dict) else None
            object_id = canonical_id(record.get("id")) if isinstance(record, dict) else None
            if (name is None and object_id is None) or _is_deep(record):
                self._drops.add(
                    Reason.MALFORMED_OBJECT, "second input, image {}, object {}: {}", image_id, place, record
                )
                continue
            found = ImageObject(record, _box_of(record))
            if found.box is not None:
                boxes.append(found.box)
            if isinstance(name, str):
                by_class[name] = found
            if object_id is not None:
                by_id[object_id] = found
        return by_class, by_id, boxes


def _box_of(record: JsonObject) -> Box | None:
    try:
        return parse_box(record.get("bbox"))
    except BoxMalformed:
        return None


def _is_deep(record: JsonObject, limit: int = 100) -> bool:
    """Whether a record that travels along is nested so deeply that writing it as JSON may fail."""
    level = [value for key, value in record.items() if key != "bbox" and isinstance(value, dict | list)]
    while level and limit:
        inner = (value.values() if isinstance(value, dict) else value for value in level)
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
        limit -= 1
    return bool(level)


def _without_id(record: JsonObject) -> JsonObject:
    return {key: value for key, value in record.items() if key != "image_id"}
