"""Images on their way to a server."""

from __future__ import annotations

import base64
import io
import threading
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.engine_cases import image
from workers.engine.api import ImageSource, ImageUnreadable
from workers.engine.openai.image_urls import FACTOR, ImageUrls, data_url, scaled


def test_a_data_url_is_the_image_to_the_pixel() -> None:
    original = image(3).load()
    kind, _, data = data_url(original).partition(",")
    assert kind == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == original.tobytes()


@pytest.mark.parametrize("size", [(640, 480), (333, 777), (64, 48)])
def test_an_image_within_the_limits_is_not_touched(size: tuple[int, int]) -> None:
    original = Image.new("RGB", size)
    assert scaled(original, None, None) is original
    assert scaled(original, 32 * 32, 1000 * 1000) is original


@pytest.mark.parametrize(("size", "low", "high"), [((4000, 3000), None, 500_000), ((64, 48), 300_000, None),
                                                 ((1000, 90), 200_000, 250_000)])  # fmt: skip
def test_an_image_beyond_them_is_brought_within_and_keeps_its_proportions(
    size: tuple[int, int], low: int | None, high: int | None
) -> None:
    width, height = scaled(Image.new("RGB", size), low, high).size
    assert width % FACTOR == height % FACTOR == 0
    assert high is None or width * height <= high
    assert low is None or width * height >= low
    assert abs(width / height / (size[0] / size[1]) - 1) < 0.25


def test_it_equals_what_the_models_own_rule_gives() -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    for size in ((4000, 3000), (1234, 777), (5000, 400)):
        width, height = scaled(Image.new("RGB", size), 65_536, 400_000).size
        assert (height, width) == smart_resize(size[1], size[0], FACTOR, 65_536, 400_000)


def test_an_image_too_thin_for_the_models_is_unreadable() -> None:
    with pytest.raises(ImageUnreadable):
        scaled(Image.new("RGB", (4000, 4)), None, None)


def noise(number: int, loads: list[int]) -> ImageSource:
    def load() -> Image.Image:
        loads.append(number)
        return Image.fromarray(np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8))

    return ImageSource(str(number), load)


def test_each_image_is_made_once_whoever_asks() -> None:
    loads: list[int] = []
    urls, found = ImageUrls(), []
    threads = [threading.Thread(target=lambda: found.append(urls.url(noise(1, loads)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(set(found)), loads, urls.made) == (1, [1], 1)


def test_the_oldest_go_when_they_are_too_many() -> None:
    loads: list[int] = []
    urls = ImageUrls(kept_bytes=10_000)  # two images of about 4 kB
    for number in (1, 2, 1, 3, 1, 2):
        urls.url(noise(number, loads))
    assert loads == [1, 2, 3, 2]


def test_an_image_that_failed_is_tried_again() -> None:
    answers: list[Any] = [OSError("gone"), Image.new("RGB", (32, 32))]

    def load() -> Image.Image:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    urls, source = ImageUrls(), ImageSource("flaky", load)
    with pytest.raises(OSError, match="gone"):
        urls.url(source)
    assert urls.url(source).startswith("data:image/png")
