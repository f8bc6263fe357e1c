"""From a stored pair to the requests that an engine takes: image, prompts, and each one's random stream."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from app.boxes import BoxMalformed, BoxOutside, frame_of
from app.database.run_rows import Run
from app.prompts import PairView, Template, parse_template, render
from app.settings import Settings
from workers.engine.api import ImageSource, Request, SamplingParams
from workers.image_decoding import load_image, open_image


class PromptError(Exception):
    """No prompt can be made of a pair; ``reason`` is one of a few, the message holds the particulars."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def requests_of(run: Run, payload: dict[str, Any], settings: Settings) -> list[Request]:
    """One request per predicate (equal predicates share one, as equal objects), or one for the pair.

    The image is looked for under this host's root, else under the one that the producer saw. The model is shown the
    frame that the boxes are in: as stored, or turned upright by EXIF.

    Raises ImageError and PromptError.
    """
    root = settings.image_root or Path(run.image_root)
    image_file = open_image(root, payload["image_path"], settings.max_image_pixels)
    extent = (float(payload["extent"][0]), float(payload["extent"][1]))
    frame = frame_of(extent, image_file.stored, image_file.upright)
    upright = frame == "upright"
    image = ImageSource(
        key=f"{image_file.key}:{frame}:{run.settings.min_pixels}:{run.settings.max_pixels}",
        load=lambda: load_image(image_file, upright=upright),
        min_pixels=run.settings.min_pixels,
        max_pixels=run.settings.max_pixels,
    )
    size = image_file.upright if upright else image_file.stored
    template = _template(run.template["text"], run.name)
    view = _view(payload)
    distinct: dict[str | None, Request] = {}
    for predicate in _asked(template, view):
        if predicate not in distinct:
            prompt = _render(template, view, predicate, size)
            distinct[predicate] = Request(image, prompt, _sampling(run, payload["identity"], predicate))
    return [distinct[predicate] for predicate in _asked(template, view)]


def _view(payload: dict[str, Any]) -> PairView:
    return PairView(
        subject=payload["subject"],
        object=payload["object"],
        subject_bbox=payload["subject_obj"]["bbox"],
        object_bbox=payload["object_obj"]["bbox"],
        predicates=tuple(predicate for predicate, _ in payload["candidates"]),
    )


def _asked(template: Template, view: PairView) -> tuple[str | None, ...]:
    return view.predicates if template.style == "per-predicate" else (None,)


def _render(template: Template, view: PairView, predicate: str | None, size: tuple[int, int]) -> Any:
    try:
        return render(template, view, predicate, size)
    except (BoxOutside, BoxMalformed) as error:
        raise PromptError("bounding box outside the image", str(error)) from None


def _sampling(run: Run, identity: str, predicate: str | None) -> SamplingParams:
    """The stream follows from (run's seed, public identity, predicate): not from worker, batch or row."""
    text = "\n".join((str(run.settings.seed), identity, "" if predicate is None else f"={predicate}"))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return SamplingParams(run.settings.temperature, run.settings.max_new_tokens, int.from_bytes(digest, "big"))


@lru_cache(maxsize=8)
def _template(text: str, run_name: str) -> Template:
    return parse_template(text, f"prompt template of run {run_name}")
