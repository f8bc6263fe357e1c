"""What betrays boxes that are read in another form than they were written in: counted, and put into one warning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from app.boxes import BOX_FORMATS, Box, BoxFormat, Size, in_pixels

_ENOUGH = 0.95  # of the boxes fit their images in the form that is proposed
_BETTER = 0.05  # and by so much more of them than in the form that was said
_HARDLY = 0.5  # of the boxes fit at all: said even where no form is better


@dataclass
class BoxCensus:
    """How many boxes fit their images, in the form that was said and in each other one."""

    form: BoxFormat = "xyxy"
    boxes: int = 0
    swapped: int = 0  # the right corner left of the left one, or the lower above the upper
    outside: int = 0  # over the image's border
    within_one: int = 0  # all four numbers between 0 and 1
    fits: Counter[str] = field(default_factory=Counter)

    def see(self, boxes: Iterable[Box], size: Size) -> None:
        """Count the boxes of one image, as they were written."""
        for box in boxes:
            self.boxes += 1
            self.swapped += _is_swapped(in_pixels(box, self.form, size))
            self.outside += _is_outside(in_pixels(box, self.form, size), size)
            self.within_one += _is_within_one(box)
            self.fits.update(form for form in BOX_FORMATS if _fits(box, form, size))

    def warning(self) -> str | None:
        """What to say, if anything: a form that fits nearly all boxes and many more than the one that was said."""
        if not self.boxes:
            return None
        share = self.fits[self.form] / self.boxes
        best = max(BOX_FORMATS, key=lambda form: (self.fits[form], form == self.form))
        better = self.fits[best] / self.boxes >= max(_ENOUGH, share + _BETTER)
        if not better and share >= _HARDLY:
            return None
        signs = {"have corners in the wrong order": self.swapped, "reach over the image's border": self.outside,
                 "lie between 0 and 1": self.within_one}  # fmt: skip
        told = ", ".join(f"{count} {what}" for what, count in signs.items() if count)
        line = f"{self.boxes - self.fits[self.form]} of {self.boxes} boxes do not look like {self.form} ({told})"
        if better:
            return f"{line}; {self.fits[best]} do like {best}: --box-format {best}?"
        return f"{line}: are these the boxes of these images? --box-format says how they are written"


def _fits(box: Box, form: BoxFormat, size: Size) -> bool:
    if _is_within_one(box) != (form == "relative"):
        return False  # a box of less than a pixel is none
    pixels = in_pixels(box, form, size)
    return not _is_swapped(pixels) and not _is_outside(pixels, size)


def _is_swapped(box: Box) -> bool:
    return box[2] < box[0] or box[3] < box[1]


def _is_within_one(box: Box) -> bool:
    return all(0 <= each <= 1 for each in box)


def _is_outside(box: Box, size: Size) -> bool:
    """Over the border by more than rounding and careless annotation explain."""
    slack = 2 + 0.01 * max(size)
    return min(box) < -slack or max(box[0], box[2]) > size[0] + slack or max(box[1], box[3]) > size[1] + slack
