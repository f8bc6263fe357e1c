"""Image files from outside: paths stay under the root, bombs and devices are never decoded."""

from __future__ import annotations

import contextlib
import io
import os
import random
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from app.errors import ImageError
from workers.image_decoding import load_image, open_image

LIMIT = 178_956_970
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a good image, alongside a secret image that is outside of it."""
    folder = tmp_path / "root"
    (folder / "inner").mkdir(parents=True)
    Image.new("RGB", (4, 3)).save(folder / "inner" / "good.png")
    Image.new("RGB", (4, 3)).save(tmp_path / "secret.png")
    (tmp_path / "root-alongside").mkdir()
    Image.new("RGB", (4, 3)).save(tmp_path / "root-alongside" / "secret.png")
    return folder


def _refusal(root: Path, relative: str) -> str:
    with pytest.raises(ImageError) as refused:
        open_image(root, relative, LIMIT)
    return refused.value.reason


@pytest.mark.parametrize("path", ["inner/good.png", "inner/../inner/good.png", "./inner/good.png"])
def test_a_path_inside_is_opened(root: Path, path: str) -> None:
    assert open_image(root, path, LIMIT).header.stored == (4, 3)


@pytest.mark.parametrize("path", ["../secret.png", "inner/../../secret.png", "../root-alongside/secret.png"])
def test_a_path_that_climbs_out_is_refused(root: Path, path: str) -> None:
    assert (root / path).resolve().is_file()
    assert _refusal(root, path) == "image path leaves the root"


def test_an_absolute_path_is_refused(root: Path) -> None:
    assert _refusal(root, str(root.parent / "secret.png")) == "image path leaves the root"


def test_links_that_lead_out_are_refused_and_links_inside_are_followed(root: Path) -> None:
    (root / "link.png").symlink_to("../secret.png")
    (root / "folder").symlink_to("../root-alongside")
    (root / "fine.png").symlink_to("inner/good.png")
    (root / "loop.png").symlink_to("loop.png")
    assert _refusal(root, "link.png") == "image path leaves the root"
    assert _refusal(root, "folder/secret.png") == "image path leaves the root"
    assert _refusal(root, "loop.png") in ("image missing", "image unreadable")
    assert open_image(root, "fine.png", LIMIT).header.stored == (4, 3)


def test_a_pipe_is_refused_without_waiting_for_a_writer(root: Path) -> None:
    os.mkfifo(root / "pipe.png")
    assert _refusal(root, "pipe.png") == "image missing"


@pytest.mark.parametrize("name", ["nul\0byte.png", "x" * 5000, ""])
def test_names_that_no_file_can_have_are_refused(root: Path, name: str) -> None:
    assert _refusal(root, name) in ("image missing", "image unreadable")


@pytest.mark.parametrize("side", [20_000, 60_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused_by_its_header(root: Path, side: int) -> None:
    (root / "bomb.png").write_bytes(_png_of_zeros(side))
    assert _refusal(root, "bomb.png") == "image too large"


def test_a_text_chunk_that_unpacks_to_gigabytes_is_refused(root: Path) -> None:
    text = zlib.compress(b"\0" * (256 << 20), 9)
    chunk = b"comment\0\0" + text
    (root / "text.png").write_bytes(_png_of_zeros(4, extra=_chunk(b"zTXt", chunk)))
    assert _refusal(root, "text.png") == "image unreadable"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "AVIF", "JPEG2000"])
def test_broken_bytes_are_an_image_error_whatever_the_decoder_raises(root: Path, form: str) -> None:
    whole = io.BytesIO()
    try:
        Image.effect_noise((40, 30), 80).convert("RGB").save(whole, form)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow does not write {form}")
    dice = random.Random(form)
    for _ in range(150):
        broken = bytearray(whole.getvalue())
        for _ in range(dice.choice((1, 2, 8))):
            broken[dice.randrange(dice.choice((60, len(broken))))] = dice.randrange(256)
        (root / "broken").write_bytes(broken[: dice.choice((len(broken), dice.randrange(len(broken))))])
        with contextlib.suppress(ImageError):  # any other exception is a find
            load_image(open_image(root, "broken", LIMIT), "upright")


def _png_of_zeros(side: int, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + extra + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
