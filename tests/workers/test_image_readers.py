"""Reads that never return: abandoned and counted, and nobody but their own image waits for them."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Event

import pytest
from PIL import Image

from app.errors import ImageError
from tests.support.waits import wait_for
from workers.image_decoding import load_image, open_image, open_watched
from workers.image_readers import ImageReaders
from workers.retry import ShuttingDown

LIMIT_S = 0.5


@pytest.fixture
def answer() -> Iterator[Event]:
    """Set, the system answers after all; so it does in the end."""
    event = Event()
    yield event
    event.set()


def hang(readers: ImageReaders, key: str, answer: Event) -> None:
    with pytest.raises(ImageError, match="has not returned") as refusal:
        readers.run(key, answer.wait)
    assert refusal.value.reason == "image does not answer"


def test_a_read_that_hangs_is_abandoned_counted_and_said(answer: Event, caplog: pytest.LogCaptureFixture) -> None:
    readers = ImageReaders(LIMIT_S, Event())
    hang(readers, "a.png", answer)
    assert (readers.hung, readers.full) == (1, False)
    assert "a read does not return, abandoned (1 of at most 16 hang): a.png" in caplog.text
    assert readers.run("b.png", lambda: 7) == 7
    answer.set()
    wait_for(lambda: not readers.hung, "it returns after all")
    wait_for(lambda: "a read that was abandoned returned" in caplog.text, "that is said")
    assert readers.run("a.png", lambda: 8) == 8


def test_many_pairs_of_one_image_that_hangs_cost_one_reader(answer: Event) -> None:
    readers = ImageReaders(LIMIT_S, Event(), most_hung=2)
    with ThreadPoolExecutor(12) as threads:
        list(threads.map(lambda _: hang(readers, "a.png", answer), range(24)))
    assert readers.hung == 1


def test_where_many_reads_hang_no_other_is_begun(answer: Event) -> None:
    readers = ImageReaders(LIMIT_S, Event(), most_hung=3)
    for number in range(3):
        hang(readers, f"{number}.png", answer)
    assert readers.full
    with pytest.raises(ImageError, match="3 reads of images hang"):
        readers.run("another.png", lambda: 1)
    assert readers.run("the folder", lambda: 2, always=True) == 2


def test_a_worker_that_stops_waits_for_no_read(answer: Event) -> None:
    stopping = Event()
    stopping.set()
    readers = ImageReaders(3_600.0, stopping)
    with pytest.raises(ShuttingDown):
        readers.run("a.png", answer.wait)
    assert readers.hung == 1


def test_only_the_systems_time_counts_not_that_of_decoding(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123")

    def slow() -> bytes:
        with open_watched(tmp_path / "a") as file:
            first = file.read(2)
            time.sleep(3 * LIMIT_S)
            return first + file.read()

    assert ImageReaders(LIMIT_S, Event()).run("a", slow) == b"0123"


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.jpg", "a.webp", "a.gif", "a.ppm", "a.jp2"])
def test_pillow_gets_no_handle_of_a_watched_file(tmp_path: Path, name: str) -> None:
    """Or it would map the file, or hand it to a library, and wait there unseen, Python's lock in its hand."""
    with ExitStack() as stack:
        Image.new("RGB", (40, 20), (200, 10, 30)).save(tmp_path / name)
        file = open_image(tmp_path, name, 10_000)
        opened = stack.enter_context(open_watched(file.path))
        with pytest.raises(io.UnsupportedOperation):
            opened.fileno()
        red, green, _ = load_image(file, "stored").getpixel((20, 10))  # type: ignore[misc]
    assert red > 150 > 60 > green
