"""The second input is indexed once and read again image by image."""

from __future__ import annotations

import io
import json

import pytest

from app.errors import InputError
from app.inputs.annotations import ImageIndex
from app.inputs.drops import Drops
from tests.support.input_files import image

ENTRIES = [image("é1"), image(2), image("三", extra=["ü"])]


def index_of(text: str) -> tuple[ImageIndex, io.BytesIO]:
    file = io.BytesIO(text.encode())
    return ImageIndex(file, "images.json", Drops()), file


@pytest.mark.parametrize("ascii_", [True, False])
def test_entries_are_found_in_any_order(ascii_: bool) -> None:
    index, _ = index_of("\ufeff" + json.dumps(ENTRIES, ensure_ascii=ascii_, indent=1))
    assert [index.entry(image_id).image_id_json for image_id in ("三", "2", "é1", "2")] == ["三", 2, "é1", 2]
    assert index.entry("三").order == 2
    assert index.entry("2").extent == (99, 95)


@pytest.mark.parametrize("change", [b"[]" + b" " * 2000, json.dumps([image(9)] * 9).encode(), b""])
def test_a_file_that_changes_while_it_is_read_is_refused(change: bytes) -> None:
    index, file = index_of(json.dumps(ENTRIES))
    file.seek(0)
    file.truncate()
    file.write(change)
    with pytest.raises(InputError, match=r"images\.json: .*: the file was changed while it was read"):
        index.entry("2")


def test_of_two_objects_with_one_id_the_last_is_kept() -> None:
    objects = [{"id": 1, "class_name": "man"}, {"id": "1.0", "class_name": "dog"}]
    index, _ = index_of(json.dumps([image(2, objects=objects)]))
    assert index.entry("2").by_id["1"].record == objects[1]


def test_a_file_that_cannot_be_read_twice_is_refused() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    with pytest.raises(InputError, match="must be a regular file"):
        ImageIndex(Pipe(b"[]"), "images.json", Drops())
