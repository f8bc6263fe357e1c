"""Images that are away as a whole are this host's trouble, and no pair's failure.

An unmounted folder or a wrong image root would turn good pairs into failures as fast as the file system answers. So
a missing image is looked at twice: if its root is missing or empty, or none of some other images of its run are there,
the worker takes no more, says why, and waits. A file that is missing among others that are there fails its pair alone.
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
from app.errors import FailureReason, ImageError
from app.images import ImageFileMissing, ImageRoot, PathLeavesRoot
from app.settings import Settings
from workers.image_decoding import image_place
from workers.retry import ShuttingDown

log = logging.getLogger(__name__)

Value = TypeVar("Value")
_SAMPLE = 20
_LOOK_S = 1.0
_SAY_EVERY_S = 30.0


class HostImages:
    """Waits for images that are away, up to ``Settings.wait_images_s``."""

    def __init__(self, database: Database, settings: Settings, stopping: Event) -> None:
        self._database, self._settings, self._stopping = database, settings, stopping
        self._lock = Lock()
        self._said = float("-inf")

    def waiting_for(self, claim: Claim, action: Callable[[], Value]) -> Value:
        """The action's value; as long as its image is missing with all others, it is tried again.

        Raises what the action raises, ImageError "images are away" after the wait, ShuttingDown.
        """
        deadline, last_look = time.monotonic() + self._settings.wait_images_s, False
        while True:
            try:
                return action()
            except ImageError as error:
                missing = error.reason is FailureReason.IMAGE_MISSING
                trouble = self._trouble(claim) if missing else ""
                if not trouble and (last_look or not missing):
                    raise
                if trouble and time.monotonic() >= deadline:
                    raise ImageError(FailureReason.IMAGES_AWAY, trouble) from None
                if trouble:
                    self._say(claim, trouble)
                # Images that come back may do so between the look at this one and the look at the others.
                last_look = not trouble
            if self._stopping.wait(_LOOK_S if trouble else 0.0):
                raise ShuttingDown("the images are away")

    def _trouble(self, claim: Claim) -> str:
        """What keeps this host from reading the claim's images as a whole; "" where it is this image alone."""
        root, _ = image_place(claim.image_root, claim.image_prefixes, claim.pair.image_path, self._settings)
        try:
            with os.scandir(root.folder) as entries:
                if next(entries, None) is None and not self._settings.prefixes:
                    return f"the image root {root.folder} is empty"
        except OSError as error:
            if not self._settings.prefixes:
                return f"the image root {root.folder} cannot be read: {error.strerror}"
        known = self._sample(claim)
        if len(known) > 1 and not any(self._is_there(claim, path) for path in known):
            return f"none of {len(known)} images of run {claim.run.name} is under {root.folder} (--image-root?)"
        return ""

    def _sample(self, claim: Claim) -> list[str]:
        query = select(images.c.path).where(images.c.run_id == claim.run.id).limit(_SAMPLE)
        with reading(self._database) as connection:
            found = list(connection.execute(query).scalars())
        prefix = os.path.join(claim.image_root, "")
        return [path.removeprefix(prefix) for path in found]

    def _is_there(self, claim: Claim, path: str) -> bool:
        root: ImageRoot
        root, place = image_place(claim.image_root, claim.image_prefixes, path, self._settings)
        try:
            root.locate(place)
        except (ImageFileMissing, PathLeavesRoot):
            return False
        return True

    def _say(self, claim: Claim, trouble: str) -> None:
        with self._lock:
            if time.monotonic() - self._said < _SAY_EVERY_S:
                return
            self._said = time.monotonic()
        log.error(
            "run %s: images are away: %s; waiting up to %.0f s, no pair is taken meanwhile",
            claim.run.name, trouble, self._settings.wait_images_s,
        )  # fmt: skip
