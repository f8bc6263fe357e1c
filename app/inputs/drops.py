"""Why candidates, pairs and images of the inputs do not become work: every one counted, with examples."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from app.errors import shorten

#: Examples kept of each reason, each a line of text.
MAX_EXAMPLES = 20


class Reason(StrEnum):
    """A reason, as it is printed and kept, and the unit that it counts.

    Candidates that go with a dropped pair are counted with the pair, not again.
    """

    unit: str

    def __new__(cls, text: str, unit: str) -> Reason:
        reason = str.__new__(cls, text)
        reason._value_, reason.unit = text, unit
        return reason

    NO_RELATION = "candidate is no relation", "candidates"
    BELOW_TOP_K = "candidate below the top k", "candidates"
    MALFORMED_CANDIDATE = "malformed candidate", "candidates"
    BAD_SIMILARITY = "similarity is not a number", "candidates"
    ONE_ID = "candidate with only one of its two ids", "candidates"
    REPEATED_IN_STAGE1 = "image a second time in stage 1", "candidates"

    ONLY_NO_RELATION = "only no relation", "pairs"
    NO_USABLE_CANDIDATE = "no usable candidate", "pairs"
    IMAGE_NOT_IN_INPUT = "image not in the second input", "pairs"
    IMAGE_AMBIGUOUS = "image in the second input twice with different content", "pairs"
    SUBJECT_NOT_FOUND = "subject not among the image's objects", "pairs"
    OBJECT_NOT_FOUND = "object not among the image's objects", "pairs"
    BAD_BOX = "bounding box is not four numbers", "pairs"
    BOX_OUTSIDE = "bounding box outside the image", "pairs"
    NO_PATH = "image path missing or malformed", "pairs"
    PATH_LEAVES_ROOT = "image path leaves the image root", "pairs"
    FILE_MISSING = "image file missing", "pairs"
    NO_SIZE = "image unreadable, so that its relative boxes are no pixels", "pairs"

    # Of either file; nothing is lost with them that is not counted above, too.
    MALFORMED_IMAGE = "malformed image entry", "images"
    MALFORMED_OBJECT = "malformed object of an image", "images"
    REPEATED_IMAGE = "image entry repeated with the same content", "images"
    NO_CANDIDATES = "image without stage-1 candidates", "images"
    MALFORMED_RELATION = "malformed relation of an image", "images"
    RELATION_WITHOUT_OBJECT = "relation of an object that the image does not list", "images"


_WHERE = "say where the images are by --image-root FOLDER or --image-prefix OLD=NEW"
_NAMES = "class names must be spelled as in the second input, capitals too"

HINTS = {
    Reason.PATH_LEAVES_ROOT: _WHERE,
    Reason.FILE_MISSING: _WHERE,
    Reason.IMAGE_NOT_IN_INPUT: "stage 1 names images by the second input's image_id, without an ending such as .jpg",
    Reason.BOX_OUTSIDE: "boxes are read as left, top, right, bottom in pixels; --box-format says how else",
    Reason.SUBJECT_NOT_FOUND: _NAMES,
    Reason.OBJECT_NOT_FOUND: _NAMES,
}
"""What to do about a reason."""


@dataclass
class Drops:
    """Counts per reason, examples of each, and the totals that make the account complete.

    ``candidates_read`` = ``candidates_kept`` + ``candidates_in_dropped_pairs`` + the counts of all reasons
    whose unit is candidates; pairs that appear in stage 1 = ``pairs_kept`` + the counts of all reasons whose
    unit is pairs.
    """

    counts: Counter[Reason] = field(default_factory=Counter)
    examples: dict[Reason, list[str]] = field(default_factory=dict)
    candidates_read: int = 0
    candidates_kept: int = 0
    candidates_in_dropped_pairs: int = 0
    pairs_kept: int = 0

    def add(self, reason: Reason, example: str, *found: object, number: int = 1) -> None:
        """Count; each ``{}`` of the example is filled with what was found, while examples are wanted."""
        self.counts[reason] += number
        lines = self.examples.setdefault(reason, [])
        if len(lines) < MAX_EXAMPLES:
            lines.append(example.format(*map(shorten, found)))

    def of(self, unit: str) -> dict[str, int]:
        """The counts of one unit ("candidates", "pairs" or "images"), most frequent first."""
        return {str(reason): n for reason, n in self.counts.most_common() if reason.unit == unit}

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON holds it."""
        return {
            "pairs": self.of("pairs"),
            "candidates": self.of("candidates"),
            "images": self.of("images"),
            "totals": {
                "candidates_read": self.candidates_read,
                "candidates_kept": self.candidates_kept,
                "candidates_in_dropped_pairs": self.candidates_in_dropped_pairs,
                "pairs_kept": self.pairs_kept,
            },
            "examples": {str(reason): list(lines) for reason, lines in self.examples.items()},
        }
