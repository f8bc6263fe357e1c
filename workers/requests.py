"""From a stored pair to the requests that an engine takes: image, prompts, and each one's random stream."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from app.boxes import BoxMalformed, BoxOutside, frame_of
from app.database.run_rows import Run
from app.errors import PromptError, TemplateError
from app.pair import Pair
from app.prompts import Template, parse_template, render
from app.settings import Settings
from workers.engine.api import ImageSource, Request, SamplingParams
from workers.image_decoding import load_image, open_image


def requests_of(run: Run, pair: Pair, settings: Settings) -> list[Request]:
    """One request per predicate (equal predicates share one, as equal objects), or one for the pair.

    The image is looked for under this host's root, else under the one that the producer saw. The model is shown the
    frame that the boxes are in: as stored, or turned upright by EXIF.

    Raises ImageError and PromptError.
    """
    root = settings.image_root or Path(run.image_root)
    file = open_image(root, pair.image_path, settings.max_image_pixels)
    frame = frame_of(pair.extent, file.header.stored, file.header.upright)
    image = ImageSource(
        key=f"{file.key}:{frame}:{run.settings.min_pixels}:{run.settings.max_pixels}",
        load=lambda: load_image(file, frame),
        min_pixels=run.settings.min_pixels,
        max_pixels=run.settings.max_pixels,
    )
    template = _template(run.template["text"], run.name)
    distinct: dict[str | None, Request] = {}
    for predicate in _asked(template, pair):
        if predicate not in distinct:
            prompt = _render(template, pair, predicate, file.header.size(frame))
            distinct[predicate] = Request(image, prompt, _sampling(run, pair.key, predicate))
    return [distinct[predicate] for predicate in _asked(template, pair)]


def _asked(template: Template, pair: Pair) -> tuple[str | None, ...]:
    return pair.predicates if template.style == "per-predicate" else (None,)


def _render(template: Template, pair: Pair, predicate: str | None, size: tuple[int, int]) -> Any:
    try:
        return render(template, pair, predicate, size)
    except (BoxOutside, BoxMalformed) as error:
        raise PromptError("bounding box outside the image", str(error)) from None
    except TemplateError as error:
        raise PromptError("prompt template unusable", str(error)) from None


def _sampling(run: Run, identity: str, predicate: str | None) -> SamplingParams:
    """The stream follows from (run's seed, public identity, predicate): not from worker, batch or row."""
    text = "\n".join((str(run.settings.seed), identity, "" if predicate is None else f"={predicate}"))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return SamplingParams(run.settings.temperature, run.settings.max_new_tokens, int.from_bytes(digest, "big"))


@lru_cache(maxsize=8)
def _template(text: str, run_name: str) -> Template:
    return parse_template(text, f"prompt template of run {run_name}")
