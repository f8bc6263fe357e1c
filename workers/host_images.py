"""Images that are away as a whole are this host's trouble, and no pair's failure.

An unmounted folder or a wrong image root would turn good pairs into failures as fast as the file system answers. So
a missing image, or one whose read does not return, is looked at twice: if its root is missing, empty or does not
answer, or none of some other images of its run are there, or many reads hang, the worker gives the pair back, takes no
more, says why, and waits. A file that is missing or hangs among others that are there fails its pair alone.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from threading import Event, Lock
from typing import TypeVar

from sqlalchemy import Engine as Database
from sqlalchemy import select

from app.database.claim_rows import Claim
from app.database.connection import reading
from app.database.schema import images
from app.errors import FailureReason, ImageError, PairError
from app.images import ImageFileMissing, PathLeavesRoot
from app.settings import Settings
from workers.image_decoding import image_place
from workers.image_readers import ImageReaders
from workers.retry import RetryUntilUp, ShuttingDown

log = logging.getLogger(__name__)

Value = TypeVar("Value")
_DOUBTFUL = (FailureReason.IMAGE_MISSING, FailureReason.IMAGE_HANGS)
_SAMPLE = 20
_LOOK_S = 1.0
_SAY_EVERY_S = 30.0


class HostTrouble(Exception):
    """This host cannot read the images of a claim as a whole; the message says why."""

    def __init__(self, claim: Claim, why: str) -> None:
        super().__init__(why)
        self.claim = claim


class HostImages:
    """Tells trouble of the host from trouble of an image, and waits for its end."""

    def __init__(self, database: Database, settings: Settings, stopping: Event, retry: RetryUntilUp) -> None:
        self._database, self._settings, self._stopping = database, settings, stopping
        self._retry = retry
        self.readers = ImageReaders(settings.image_read_s, stopping)
        self._lock = Lock()
        self._said = float("-inf")

    def read(self, claim: Claim, action: Callable[[], Value]) -> Value:
        """The action's value. Raises what the action raises, and HostTrouble where that is not its image's fault."""
        try:
            return action()
        except ImageError as error:
            self.judge(claim, error)
            if error.reason is not FailureReason.IMAGE_MISSING:
                raise
        return action()  # images that came back may have done so between the look at this one and that at the others

    def judge(self, claim: Claim, error: PairError) -> None:
        """Raises HostTrouble where an error is this host's and not the image's."""
        if error.reason in _DOUBTFUL and (trouble := self._trouble(claim)):
            raise HostTrouble(claim, trouble)

    def wait(self, trouble: HostTrouble, until: float) -> None:
        """Return when the trouble is over, or at ``until`` (of the monotonic clock). Raises ShuttingDown."""
        why = str(trouble)
        while why and time.monotonic() < until:
            self._say(trouble.claim, why)
            if self._stopping.wait(_LOOK_S):
                raise ShuttingDown("the images are away")
            why = self._trouble(trouble.claim)

    def _trouble(self, claim: Claim) -> str:
        """What keeps this host from reading the claim's images as a whole; "" where it is this image alone."""
        if self.readers.full:
            return f"{self.readers.hung} reads of images hang"
        folder = str(self._settings.image_root or claim.image_root)
        try:
            if trouble := self.readers.run(f"{folder} (the folder)", lambda: self._look(claim), always=True):
                return trouble
        except ImageError:
            return f"the image root {folder} does not answer"
        known = self._retry(lambda: self._sample(claim))
        if len(known) > 1 and not any(self._is_there(claim, path) for path in known):
            return f"none of {len(known)} images of run {claim.run.name} can be had under {folder} (--image-root?)"
        return ""

    def _look(self, claim: Claim) -> str:
        root, _ = image_place(claim.image_root, claim.image_prefixes, claim.pair.image_path, self._settings)
        if self._settings.prefixes:
            return ""
        try:
            with os.scandir(root.folder) as entries:
                if next(entries, None) is None:
                    return f"the image root {root.folder} is empty"
        except OSError as error:
            return f"the image root {root.folder} cannot be read: {error.strerror}"
        return ""

    def _sample(self, claim: Claim) -> list[str]:
        query = select(images.c.path).where(images.c.run_id == claim.run.id).limit(_SAMPLE)
        with reading(self._database) as connection:
            found = list(connection.execute(query).scalars())
        prefix = os.path.join(claim.image_root, "")
        return [path.removeprefix(prefix) for path in found]

    def _is_there(self, claim: Claim, path: str) -> bool:
        def locate() -> bool:
            root, place = image_place(claim.image_root, claim.image_prefixes, path, self._settings)
            root.locate(place)
            return True

        try:
            return self.readers.run(os.path.join(claim.image_root, path), locate, always=True)
        except (ImageError, ImageFileMissing, PathLeavesRoot):
            return False

    def _say(self, claim: Claim, trouble: str) -> None:
        with self._lock:
            if time.monotonic() - self._said < _SAY_EVERY_S:
                return
            self._said = time.monotonic()
        log.error(
            "run %s: images are away: %s; waiting up to %.0f s, no pair is taken meanwhile",
            claim.run.name, trouble, self._settings.wait_images_s,
        )  # fmt: skip
