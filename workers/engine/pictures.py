"""Pictures loaded and preprocessed beside the engine's thread, so that decoding does not wait for a JPEG."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from workers.engine.generation import Picture
from workers.engine.prompting import Pixels, Prompter
from workers.engine.threads import without_team


class PictureLoader:
    """At most one preparation of each picture at a time."""

    def __init__(self, prompter: Prompter, ready: Callable[[], None], threads: int = 2) -> None:
        self._prompter = prompter
        self._ready = ready
        self._pool = ThreadPoolExecutor(threads, "pictures", initializer=without_team)
        self._pixels: dict[str, Future[Pixels]] = {}

    def want(self, picture: Picture) -> Future[Pixels]:
        """The picture's pixels, sooner or later; ``ready`` is called when they are there or cannot be had."""
        if picture.key not in self._pixels:
            future = self._pool.submit(lambda: self._prompter.pixels(picture))
            self._pixels[picture.key] = future
            future.add_done_callback(lambda _: self._ready())
        return self._pixels[picture.key]

    def forget(self, key: str) -> None:
        """Let a picture's pixels go; they are loaded anew if they are wanted again."""
        self._pixels.pop(key, None)

    def close(self) -> None:
        """Take no more, and leave what is not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)
