"""What a text belongs to: keys over all that determines it, so that what is known is never generated again.

A **text key** stands for one description: the model, the image's content and how it is shown, the rendered prompt (so
the template, names, normalised boxes and predicate), and how it was sampled. The limit of new tokens is not in it: a
stored text serves where it ended by itself and fits, or was cut at the same limit. A **scene key** stands for the pair
of objects whatever is said of them; it is what the database is asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from app.boxes import Frame, Size, normalise_box
from app.pair import Pair
from app.prompts import Segment

_VERSION = "v1"


@dataclass(frozen=True)
class Scene:
    """One pair in one image as one model is shown it with one template."""

    model_hash: str
    image_sha256: str
    frame: Frame
    size: Size  # of the frame, in pixels
    pixels: tuple[int | None, int | None]  # fewest and most that the image is scaled to; None is the model's own
    template_hash: str

    def key(self, pair: Pair) -> str:
        """32 hexadecimal digits; raises what ``normalise_box`` raises."""
        boxes = [normalise_box(box, *self.size) for box in (pair.subject_box, pair.object_box)]
        return _digest([*self._seen(), self.template_hash, pair.subject, pair.object, boxes])

    def text_key(self, prompt: Sequence[Segment], temperature: float, stream: int, draw: int) -> str:
        """32 hexadecimal digits; the random stream counts only where something is drawn."""
        text = "".join(part for part, _ in prompt)
        return _digest([*self._seen(), text, temperature, stream if temperature > 0 else 0, draw])

    def _seen(self) -> list[Any]:
        return [_VERSION, self.model_hash, self.image_sha256, self.frame, self.pixels]


def known_texts(descriptions: Iterable[dict[str, Any]], max_new_tokens: int) -> dict[str, dict[str, Any]]:
    """Those of the stored descriptions that serve within a limit of new tokens, by their keys."""
    return {
        each["key"]: each
        for each in descriptions
        if each.get("key")
        and (each["tokens"] <= max_new_tokens if each["finish_reason"] == "stop" else each["tokens"] == max_new_tokens)
    }


def _digest(parts: list[Any]) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
