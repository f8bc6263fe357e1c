"""Reads of image files in threads of their own: one that never returns holds up its own image, and nothing else.

A network share that is gone does not fail a read, it keeps it; no signal and no time limit of Python's ends that. So
whoever wants an image waits for a thread, and leaves it where the system does not answer.
"""

from __future__ import annotations

import io
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from threading import Condition, Event, Thread
from typing import TypeVar

from app.errors import FailureReason, ImageError, shorten
from workers.retry import ShuttingDown

log = logging.getLogger(__name__)

Value = TypeVar("Value")

MOST_HUNG = 16
"""Abandoned reads of a process at most: each keeps a thread, and so many are no longer the images' fault."""

_LOOK_S, _SAY_AFTER_S = 0.2, 5.0
_of_thread = threading.local()  # .read: the read that this thread does


class _Read:
    """One read under way; only the time that the system keeps it counts, not what is computed in between."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.began = time.monotonic()
        self.waiting_since: float | None = self.began  # for the system; None while it computes
        self.abandoned = False

    def stuck_for(self) -> float:
        """Seconds since the system was asked for what it has not given yet."""
        since = self.waiting_since
        return 0.0 if since is None else time.monotonic() - since


class ImageReaders:
    """Does the reads of one process; at most one of a file at a time. Safe to use from every thread."""

    def __init__(self, limit_s: float, stopping: Event, most_hung: int = MOST_HUNG) -> None:
        """``limit_s``: seconds that the system may take for one step of a read, before the read is abandoned;
        once ``stopping`` is set, nobody waits so long.
        """
        self._limit_s, self._stopping, self._most_hung = limit_s, stopping, most_hung
        self._changed = Condition()
        self._reads: dict[str, _Read] = {}

    @property
    def hung(self) -> int:
        """Reads that were abandoned and have not returned yet."""
        with self._changed:
            return self._hung()

    @property
    def full(self) -> bool:
        """Whether so many reads hang that no other is begun."""
        return self.hung >= self._most_hung

    def run(self, key: str, action: Callable[[], Value], *, always: bool = False) -> Value:
        """The action's value, or what it raises. ``key`` names the file, for people too.

        Raises ImageError "image does not answer": the read hangs, an earlier one of the file still does, or (not with
        ``always``) so many others do that none is begun. ShuttingDown: the worker stops, and the read hangs.
        """
        read, future = self._begin(key, always), Future[Value]()
        Thread(target=self._perform, args=(read, action, future), name="image reader", daemon=True).start()
        said = False
        while not wait([future], _LOOK_S).done:
            stuck = read.stuck_for()
            stops = self._stopping.is_set() and stuck > _LOOK_S
            if (stops or stuck > self._limit_s) and self._abandon(read, future):
                if stops:
                    raise ShuttingDown(f"a read hangs: {key}")
                raise _hangs(key, stuck)
            if stuck > _SAY_AFTER_S and not said:
                said = True
                log.warning("a read has not returned for %.0f s, waiting up to %.0f s: %s", stuck, self._limit_s, key)
        return future.result()

    def _hung(self) -> int:
        return sum(read.abandoned for read in self._reads.values())

    def _begin(self, key: str, always: bool) -> _Read:
        with self._changed:
            while (earlier := self._reads.get(key)) is not None:
                if earlier.abandoned:
                    raise _hangs(key, time.monotonic() - earlier.began)
                self._changed.wait()
            if not always and self._hung() >= self._most_hung:
                raise ImageError(FailureReason.IMAGE_HANGS, f"{self._most_hung} reads of images hang: no other begins")
            read = self._reads[key] = _Read(key)
            return read

    def _abandon(self, read: _Read, future: Future[Value]) -> bool:
        """False if it returned in this moment."""
        with self._changed:
            if future.done():
                return False
            read.abandoned = True
            hung = self._hung()
            self._changed.notify_all()
        log.error("a read does not return, abandoned (%d of at most %d hang): %s", hung, self._most_hung, read.key)
        return True

    def _perform(self, read: _Read, action: Callable[[], Value], future: Future[Value]) -> None:
        _of_thread.read = read
        try:
            value = action()
        except BaseException as error:  # noqa: BLE001 - whoever waits raises it
            self._end(read, partial(future.set_exception, error))
        else:
            self._end(read, partial(future.set_result, value))

    def _end(self, read: _Read, settle: Callable[[], object]) -> None:
        with self._changed:
            del self._reads[read.key]
            settle()
            self._changed.notify_all()
        if read.abandoned:
            log.warning("a read that was abandoned returned after %.0f s: %s", time.monotonic() - read.began, read.key)


def watched(handle: int) -> io.BufferedReader:
    """A file by its handle, with the watch of the reader whose thread this is over each step."""
    return io.BufferedReader(_Watched(handle), 1 << 18)


class _Watched(io.RawIOBase):
    """A file that gives nobody its handle: libtiff and mmap would read past the watch, mmap with Python's lock held."""

    def __init__(self, handle: int) -> None:
        super().__init__()
        self._handle, self._read = handle, getattr(_of_thread, "read", None)
        self._computes()

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """One step of a read."""
        if self._read is not None:
            self._read.waiting_since = time.monotonic()
        count = os.readv(self._handle, [buffer])
        self._computes()
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves the place of the next step."""
        return os.lseek(self._handle, offset, whence)

    def close(self) -> None:
        """Give the handle back."""
        if not self.closed:
            os.close(self._handle)
        super().close()

    def _computes(self) -> None:
        if self._read is not None:
            self._read.waiting_since = None


def _hangs(key: str, seconds: float) -> ImageError:
    return ImageError(FailureReason.IMAGE_HANGS, f"a read has not returned for {seconds:.0f} s: {shorten(key, 200)}")
