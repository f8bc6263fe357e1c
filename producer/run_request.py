"""What an enqueue asks for: the input files, and the run that they go into."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.boxes import BoxFormat
from app.database.records import Run, RunSettings
from app.database.source_rows import Source
from app.images import Prefixes
from app.model_identity import ModelIdentity
from app.prompts import Language, Template


@dataclass(frozen=True)
class Inputs:
    """The files of a run, and where their images are."""

    stage1: Path | tuple[Path, ...]
    images: Path
    image_root: Path
    image_prefixes: Prefixes = ()
    box_format: BoxFormat = "xyxy"

    @property
    def stage1_files(self) -> tuple[Path, ...]:
        """The stage-1 files, one or more."""
        return (self.stage1,) if isinstance(self.stage1, Path) else self.stage1

    def source(self) -> Source:
        """As the database knows it, with path, size and content hash of each file."""
        prints: dict[str, Any] = {
            "stage1": [_fingerprint(path) for path in self.stage1_files],
            "images": _fingerprint(self.images),
        }
        if self.box_format != "xyxy":
            prints["box_format"] = self.box_format
        paths = tuple(str(path.resolve()) for path in self.stage1_files)
        return Source(paths, str(self.images.resolve()), self.image_root, self.image_prefixes, prints)


@dataclass(frozen=True)
class RunRequest:
    """The run that is asked for: its name, what makes its text, what is only reported."""

    name: str
    model: ModelIdentity
    settings: RunSettings
    template: Template
    options: dict[str, Any]
    priority: int | None = None  # None keeps the run's own
    update: bool = False  # take changed inputs in place of those that are there
    force: bool = False  # even if the disk seems too small
    verify: Language | None = None  # whether each relation holds is asked, too, in this language

    def as_run(self, inputs: Inputs) -> Run:
        """As a row that has no id yet."""
        return Run(
            id=0,
            uuid="",
            name=self.name,
            settings=self.settings,
            template={"text": self.template.text, "style": self.template.style},
            model_key=self.model.key,
            image_root=str(inputs.image_root.resolve()),
            expected=0,
            options=self.options,
            created_at=0.0,
            priority=self.priority or 0,
            model_hash=self.model.hash,
        )


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": str(path.resolve()), "bytes": path.stat().st_size, "sha256": digest}
