"""Image files of every kind, each with its decided outcome."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile

from app.boxes import Frame
from app.errors import ImageError
from tests.support import quirks
from workers.image_decoding import ImageFile, _header, load_image, open_image

LIMIT = 178_956_970


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def opened(root: Path, name: str, limit: int = LIMIT) -> ImageFile:
    return open_image(root, name, limit)


def decoded(root: Path, name: str, frame: Frame = "stored") -> Image.Image:
    return load_image(opened(root, name), frame)


def reason(root: Path, name: str, limit: int = LIMIT) -> str:
    with pytest.raises(ImageError) as refusal:
        load_image(open_image(root, name, limit), "stored")
    return refusal.value.reason


@pytest.mark.parametrize(
    ("mode", "colour", "name", "shown"),
    [
        ("RGB", (10, 200, 30), "a.png", (10, 200, 30)),
        ("L", 77, "a.png", (77, 77, 77)),
        ("1", 1, "a.png", (255, 255, 255)),
        ("LA", (77, 255), "a.png", (77, 77, 77)),
        ("LA", (77, 0), "a.png", (255, 255, 255)),
        ("RGBA", (10, 200, 30, 255), "a.png", (10, 200, 30)),
        ("RGBA", (10, 200, 30, 0), "a.webp", (255, 255, 255)),
        ("CMYK", (0, 0, 0, 0), "a.jpg", (255, 255, 255)),
        ("CMYK", (0, 0, 0, 255), "a.jpg", (0, 0, 0)),
        ("I;16", 0x4C00, "a.png", (0x4C, 0x4C, 0x4C)),
        ("I", 0x4C00, "a.tif", (0x4C, 0x4C, 0x4C)),
        ("I", 1_000_000, "a.tif", (255, 255, 255)),
        ("F", 100.0, "a.tif", (100, 100, 100)),
        ("YCbCr", (128, 128, 128), "a.jpg", (128, 128, 128)),
    ],
)
def test_every_mode_becomes_rgb(root: Path, mode: str, colour: object, name: str, shown: tuple[int, int, int]) -> None:
    Image.new(mode, (8, 6), colour).save(root / name)  # type: ignore[arg-type]
    image = decoded(root, name)
    assert (image.mode, image.size) == ("RGB", (8, 6))
    assert np.abs(np.asarray(image).astype(int) - shown).max() <= 3


def test_every_kind_of_file_is_decoded_or_unreadable(tmp_path: Path) -> None:
    quirks.image_formats(tmp_path)
    unreadable = {"truncated.jpg", "text.jpg", "empty.jpg"}
    names = {path.name for path in (tmp_path / "images").iterdir()}
    for name in names - unreadable:
        assert decoded(tmp_path / "images", name).size == ((1, 160) if name == "one_pixel.png" else quirks.SIZE), name
    for name in unreadable:
        assert reason(tmp_path / "images", name) == "image unreadable", name
    assert len(names) == 13


def test_a_palettes_transparent_colour_shows_white(root: Path) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 1), 1)
    image.save(root / "a.png", transparency=0)
    shown = decoded(root, "a.png")
    assert (shown.getpixel((0, 0)), shown.getpixel((1, 1))) == ((255, 255, 255), (0, 0, 255))


def test_of_an_animation_the_first_frame_counts(root: Path) -> None:
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "blue")]
    frames[0].save(root / "a.gif", save_all=True, append_images=frames[1:])
    assert decoded(root, "a.gif").getpixel((2, 2)) == (255, 0, 0)


def corners(image: Image.Image) -> list[int]:
    """The brightest channel at top left, top right, bottom left and bottom right."""
    width, height = image.size
    places = ((2, 2), (width - 3, 2), (2, height - 3), (width - 3, height - 3))
    pixels = np.asarray(image.convert("RGB"))
    return [int(np.argmax(pixels[down, across])) for across, down in places]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
def test_an_image_can_be_had_as_stored_and_upright(root: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    drawn = Image.new("RGB", (40, 20), "blue")
    drawn.paste((255, 0, 0), (0, 0, 20, 10))
    drawn.paste((0, 255, 0), (20, 0, 40, 10))
    drawn.save(root / name, exif=exif)
    file = opened(root, name)
    assert file.header.stored == (40, 20)
    assert file.header.upright == ((20, 40) if orientation >= 5 else (40, 20))
    stored, upright = load_image(file, "stored"), load_image(file, "upright")
    assert (stored.size, upright.size) == (file.header.stored, file.header.upright)
    assert corners(stored) == corners(drawn)
    expected = drawn.copy()
    expected.getexif()[0x0112] = orientation
    assert corners(upright) == corners(ImageOps.exif_transpose(expected))


def test_a_header_is_read_once_per_image_and_decodes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (64, 48)).save(root / "a.png")
    loads = []
    monkeypatch.setattr(PngImageFile, "load", lambda self: loads.append(self))
    reads = _header.cache_info().misses
    for _ in range(5):
        opened(root, "a.png")
    assert not loads
    assert _header.cache_info().misses == reads + 1


def test_an_orientation_behind_the_pixels_of_a_png_counts(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20)).save(buffer, "png")
    block = exif.tobytes().removeprefix(b"Exif\x00\x00")
    late = struct.pack(">I", len(block)) + b"eXIf" + block + struct.pack(">I", zlib.crc32(b"eXIf" + block))
    end = buffer.getvalue().rindex(b"IEND") - 4
    (root / "a.png").write_bytes(buffer.getvalue()[:end] + late + buffer.getvalue()[end:])
    assert opened(root, "a.png").header.upright == (20, 40)
    assert decoded(root, "a.png", "upright").size == (20, 40)
    assert decoded(root, "a.png", "stored").size == (40, 20)


@pytest.mark.parametrize(
    "exif", [b"Exif\x00\x00", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"Exif\x00\x00" + b"\xff" * 40]
)
def test_a_broken_exif_block_is_no_orientation(root: Path, exif: bytes) -> None:
    Image.new("RGB", (40, 20)).save(root / "a.jpg", exif=exif)
    assert opened(root, "a.jpg").header.orientation == 1
    assert decoded(root, "a.jpg", "upright").size == (40, 20)


def test_a_format_that_starts_other_programs_is_not_opened(root: Path) -> None:
    (root / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 20\n%%EndComments\nshowpage\n")
    assert reason(root, "a.jpg") == "image unreadable"


def test_what_is_no_whole_image_is_unreadable(root: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    for form in ("png", "jpeg", "webp", "tiff", "gif", "bmp"):
        buffer = io.BytesIO()
        noise.save(buffer, form)
        (root / f"cut.{form}").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
        assert reason(root, f"cut.{form}") == "image unreadable", form
    (root / "empty.jpg").touch()
    (root / "text.jpg").write_text("no image")
    (root / "noise.jpg").write_bytes(os.urandom(2_000))
    for name in ("empty.jpg", "text.jpg", "noise.jpg"):
        assert reason(root, name) == "image unreadable"


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises that many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [14_000, 30_000])
def test_a_decompression_bomb_is_refused_by_its_header(root: Path, side: int) -> None:
    (root / "bomb.png").write_bytes(png_of_size(side, side))
    assert reason(root, "bomb.png") == "image too large"


def test_the_limit_is_a_setting(root: Path) -> None:
    Image.new("RGB", (40, 20)).save(root / "a.png")
    assert reason(root, "a.png", limit=799) == "image too large"
    assert opened(root, "a.png", limit=800).header.stored == (40, 20)


def test_a_image_without_pixels_is_unreadable(root: Path) -> None:
    (root / "none.png").write_bytes(png_of_size(0, 10))
    assert reason(root, "none.png") == "image unreadable"


@pytest.mark.parametrize("path", ["../secret.png", "sub/../../secret.png", "link.png", "folder link/secret.png"])
def test_nothing_outside_the_root_is_opened(root: Path, path: str) -> None:
    Image.new("RGB", (4, 4)).save(root.parent / "secret.png")
    (root / "link.png").symlink_to(root.parent / "secret.png")
    (root / "folder link").symlink_to(root.parent)
    (root / "sub").mkdir()
    assert reason(root, path) == "image path leaves the root"


def test_an_absolute_path_does_not_leave_the_root_either(root: Path) -> None:
    Image.new("RGB", (4, 4)).save(root.parent / "secret.png")
    assert reason(root, str(root.parent / "secret.png")) == "image path leaves the root"


def test_a_root_may_be_a_link_and_links_within_it_are_followed(root: Path) -> None:
    Image.new("RGB", (4, 4)).save(root / "a.png")
    (root / "b.png").symlink_to("a.png")
    (root.parent / "other root").symlink_to(root)
    assert decoded(root.parent / "other root", "b.png").size == (4, 4)


@pytest.mark.parametrize("path", ["absent.png", "", ".", "sub"])
def test_what_is_no_file_is_missing(root: Path, path: str) -> None:
    (root / "sub").mkdir()
    assert reason(root, path) == "image missing"


@pytest.mark.parametrize("path", ["nul\x00.png", "long" * 1_000])
def test_what_is_no_path_is_unreadable_or_missing(root: Path, path: str) -> None:
    assert reason(root, path) in ("image unreadable", "image missing")


def test_a_pipe_is_no_image_and_nobody_waits_for_it(root: Path) -> None:
    os.mkfifo(root / "pipe.png")
    assert reason(root, "pipe.png") == "image missing"


def test_a_changed_file_has_another_key(root: Path) -> None:
    Image.new("RGB", (4, 4)).save(root / "a.png")
    before = opened(root, "a.png").key
    assert opened(root, "a.png").key == before
    Image.new("RGB", (4, 5)).save(root / "a.png")
    assert opened(root, "a.png").key != before
