"""Images as a chat request carries them: scaled by our pixel limits, PNG, as a data URL; each image made once."""

from __future__ import annotations

import base64
import io
import math
import threading
from collections import OrderedDict
from concurrent.futures import Future

from PIL import Image

from workers.engine.api import ImageSource, ImageUnreadable

FACTOR = 32  # sides are multiples of it: Qwen3-VL's patch of 16 pixels times its merging of 2
KEPT_BYTES = 128 * 2**20  # of finished URLs


class ImageUrls:
    """Thread-safe; who wants an image that another thread makes waits for it."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._lock = threading.Lock()
        self._urls: OrderedDict[str, Future[str]] = OrderedDict()
        self._kept_bytes = kept_bytes
        self._bytes = 0
        self.made = 0

    def url(self, source: ImageSource) -> str:
        """The image's data URL. Raises what its ``load`` raises, for all who wait; the next one tries again."""
        with self._lock:
            future = self._urls.get(source.key)
            mine = future is None
            if future is None:
                future = self._urls[source.key] = Future()
            self._urls.move_to_end(source.key)
        if mine:
            self._make(source, future)
        return future.result()

    def _make(self, source: ImageSource, future: Future[str]) -> None:
        try:
            url = data_url(scaled(source.load().convert("RGB"), source.min_pixels, source.max_pixels))
        except BaseException as error:
            with self._lock:
                self._urls.pop(source.key, None)
            future.set_exception(error)
            raise
        future.set_result(url)
        with self._lock:
            self.made += 1
            self._bytes += len(url)
            finished = [key for key, other in self._urls.items() if other.done() and key != source.key]
            while self._bytes > self._kept_bytes and finished:
                self._bytes -= len(self._urls.pop(finished.pop(0)).result())


def scaled(image: Image.Image, min_pixels: int | None, max_pixels: int | None) -> Image.Image:
    """The image within the limits, its proportions kept; untouched where it is within them already.

    The rule is Qwen's own (``smart_resize`` of their image processors), so that a server of these models changes what
    it gets no further. Raises ImageUnreadable for an image so thin that they refuse it.
    """
    width, height = image.size
    if max(width, height) > 200 * min(width, height):
        raise ImageUnreadable(f"an image of {width}x{height} pixels is more than 200 times as long as wide")
    pixels = width * height
    if max_pixels is not None and pixels > max_pixels:
        scale = math.sqrt(max_pixels / pixels)
        steps = (math.floor(width * scale / FACTOR), math.floor(height * scale / FACTOR))
    elif min_pixels is not None and pixels < min_pixels:
        scale = math.sqrt(min_pixels / pixels)
        steps = (math.ceil(width * scale / FACTOR), math.ceil(height * scale / FACTOR))
    else:
        return image
    return image.resize((max(1, steps[0]) * FACTOR, max(1, steps[1]) * FACTOR), Image.Resampling.BICUBIC)


def data_url(image: Image.Image) -> str:
    """A PNG of the pixels as they are: what the model sees is decided here, not by a JPEG encoder."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # a third larger than the best, several times as fast
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
