"""Images loaded and preprocessed alongside the engine's thread, so that decoding does not wait for a JPEG."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from workers.engine.api import ImageSource
from workers.engine.openmp import without_team
from workers.engine.processor import InputProcessor, Pixels


class ImageLoader:
    """At most one preparation of each image at a time."""

    def __init__(self, processor: InputProcessor, ready: Callable[[], None], threads: int = 2) -> None:
        self._processor = processor
        self._ready = ready
        self._pool = ThreadPoolExecutor(threads, "images", initializer=without_team)
        self._pixels: dict[str, Future[Pixels]] = {}

    def want(self, image: ImageSource) -> Future[Pixels]:
        """The image's pixels, sooner or later; ``ready`` is called when they are there or cannot be had."""
        if image.key not in self._pixels:
            future = self._pool.submit(lambda: self._processor.pixels(image))
            self._pixels[image.key] = future
            future.add_done_callback(lambda _: self._ready())
        return self._pixels[image.key]

    def forget(self, key: str) -> None:
        """Let an image's pixels go; they are loaded again if they are wanted again."""
        self._pixels.pop(key, None)

    def close(self) -> None:
        """Take no more, and leave what is not started."""
        self._pool.shutdown(wait=False, cancel_futures=True)
