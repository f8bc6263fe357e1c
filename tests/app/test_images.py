"""Image paths stay within their root, and headers give sizes without decoding."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app.images import ImageFileMissing, ImageHeaderError, ImageRoot, PathLeavesRoot, read_header


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A root with a file, and a file outside it."""
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "root" / "sub" / "a.jpg").touch()
    (tmp_path / "secret.jpg").touch()
    return tmp_path


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
    | st.sampled_from(
        [
            "..",
            "../",
            "//a",
            "/",
            "a/../../b",
            "root",
            "../root",
            "../root2/x",
            "./././a",
            "/data/root/x",
            "/data/root",
        ]
    )
)
def test_any_path_is_under_the_root_or_refused(path: str) -> None:
    root = ImageRoot(Path("/data/root"))
    try:
        relative = root.relative(path)
    except PathLeavesRoot:
        return
    full = os.path.normpath(os.path.join("/data/root", relative))
    assert full.startswith("/data/root/")
    assert not relative.startswith("/")
    assert root.relative(relative) == relative


def test_a_root_that_is_a_link_serves_paths_of_both_spellings(folder: Path) -> None:
    (folder / "link").symlink_to(folder / "root")
    root = ImageRoot(folder / "link")
    for path in ("sub/a.jpg", folder / "link/sub/a.jpg", folder / "root/sub/a.jpg"):
        assert root.relative(str(path)) == "sub/a.jpg"
    assert root.locate("sub/a.jpg").is_file()


def test_a_link_that_stays_within_the_root_is_followed(folder: Path) -> None:
    (folder / "root" / "b.jpg").symlink_to("sub/a.jpg")
    assert ImageRoot(folder / "root").locate("b.jpg") == folder / "root" / "b.jpg"


@pytest.mark.parametrize(
    ("link", "target", "path"), [("b.jpg", "../secret.jpg", "b.jpg"), ("up", "..", "up/secret.jpg")]
)
def test_a_link_that_leads_out_of_the_root_is_refused(folder: Path, link: str, target: str, path: str) -> None:
    (folder / "root" / link).symlink_to(target)
    with pytest.raises(PathLeavesRoot):
        ImageRoot(folder / "root").locate(path)


def test_only_regular_files_are_found(folder: Path) -> None:
    (folder / "root" / "loop.jpg").symlink_to("loop.jpg")
    (folder / "root" / "broken.jpg").symlink_to("nothing.jpg")
    os.mkfifo(folder / "root" / "pipe.jpg")
    for path in ("nothing.jpg", "sub", "loop.jpg", "broken.jpg", "pipe.jpg", "sub/a.jpg/b.jpg", "n" * 5000):
        with pytest.raises(ImageFileMissing):
            ImageRoot(folder / "root").locate(path)


def test_the_header_gives_the_size_stored_and_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (40, 20))
    for name in ("a.jpg", "a.png", "a.webp", "a.tif"):
        image.save(tmp_path / name, exif=exif)
        header = read_header(tmp_path / name)
        assert (header.size("stored"), header.size("upright")) == ((40, 20), (20, 40)), name
    image.save(tmp_path / "b.png")
    assert read_header(tmp_path / "b.png").upright == (40, 20)


@pytest.mark.parametrize("content", [b"", b"<html>", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM" + b"\xff" * 60])
def test_a_header_that_cannot_be_read_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageHeaderError):
        read_header(tmp_path / "a.jpg")


def test_a_decompression_bomb_is_told_and_gives_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    Image.new("L", (40, 20)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.raises(ImageHeaderError) as refusal:
        read_header(tmp_path / "a.png")
    assert refusal.value.too_large
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    assert read_header(tmp_path / "a.png").stored == (40, 20)
    assert not recwarn.list


def test_a_file_address_of_another_systems_drive_is_that_drives_path(tmp_path: Path) -> None:
    (tmp_path / "1.png").touch()
    root = ImageRoot(tmp_path / "elsewhere", (("C:/data", str(tmp_path)),))
    assert root.locate("file:///C:/data/1.png") == root.locate("C:\\data\\1.png") == tmp_path / "1.png"
    assert root.locate("c:\\Data\\1.png") == tmp_path / "1.png", "Windows knows no capitals"
    with pytest.raises(PathLeavesRoot):
        ImageRoot(tmp_path / "elsewhere", (("/data", str(tmp_path)),)).locate("/Data/1.png")
