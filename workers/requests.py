"""From a claimed pair to what an engine is asked: image, prompts, random streams, and the keys of the answers."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from app.boxes import BoxMalformed, BoxOutside, Frame, frame_of
from app.database.claim_rows import Claim
from app.database.run_rows import Run
from app.errors import PromptError, TemplateError
from app.images import ImageRoot, Prefixes
from app.pair import Pair
from app.prompts import Template, parse_template, render
from app.settings import Settings
from app.text_keys import Scene
from workers.engine.api import ImageSource, Request, SamplingParams
from workers.image_decoding import ImageFile, load_image, open_image


@dataclass(frozen=True)
class PairRequests:
    """What is asked of one pair, in the order of its answers; equal requests are equal objects."""

    requests: tuple[Request, ...]
    predicates: tuple[str | None, ...]  # None where one description stands for the pair
    keys: tuple[str, ...]  # of the descriptions
    scene_key: str
    image: tuple[int, int, str]  # bytes, time of change (ns), sha256


def requests_of(claim: Claim, settings: Settings, model_hash: str) -> PairRequests:
    """One request per predicate, or one for the pair.

    The model is shown the frame that the boxes are in: as stored, or turned upright by EXIF.

    Raises ImageError and PromptError.
    """
    run, pair = claim.run, claim.pair
    root, path = image_place(claim.image_root, claim.image_prefixes, pair.image_path, settings)
    file = open_image(root, path, settings.max_image_pixels)
    frame = frame_of(pair.extent, file.header.stored, file.header.upright)
    image = _image(file, frame, run)
    template = _template(run.template["text"], run.name)
    size, pixels = file.header.size(frame), (run.settings.min_pixels, run.settings.max_pixels)
    scene = Scene(model_hash, file.sha256(), frame, size, pixels, run.settings.template_hash)
    predicates: tuple[str | None, ...] = pair.predicates if template.style == "per-predicate" else (None,)
    made: dict[str | None, tuple[Request, str]] = {}
    for predicate in dict.fromkeys(predicates):
        prompt = _render(template, pair, predicate, size)
        sampling, draw = _sampling(run, pair, predicate)
        key = scene.text_key(prompt, sampling.temperature, sampling.seed, draw)
        made[predicate] = Request(image, prompt, sampling), key
    requests, keys = zip(*(made[predicate] for predicate in predicates), strict=True)
    return PairRequests(requests, predicates, keys, scene.key(pair), (file.size, file.mtime_ns, file.sha256()))


def image_place(image_root: str, prefixes: Prefixes, path: str, settings: Settings) -> tuple[ImageRoot, str]:
    """Under which root this host looks for a path that a source holds, and for which.

    This host's root goes before its prefixes, and these before the root that the producer saw.
    """
    if settings.image_root is not None:
        return _root(str(settings.image_root), settings.prefixes), path
    if settings.prefixes:
        return _root(image_root, settings.prefixes), os.path.join(image_root, path)
    return _root(image_root, prefixes), path


def _image(file: ImageFile, frame: Frame, run: Run) -> ImageSource:
    pixels = run.settings.min_pixels, run.settings.max_pixels
    return ImageSource(
        key=f"{file.key}:{frame}:{pixels[0]}:{pixels[1]}",
        load=lambda: load_image(file, frame),
        min_pixels=pixels[0],
        max_pixels=pixels[1],
    )


def _render(template: Template, pair: Pair, predicate: str | None, size: tuple[int, int]) -> Any:
    try:
        return render(template, pair, predicate, size)
    except (BoxOutside, BoxMalformed) as error:
        raise PromptError("bounding box outside the image", str(error)) from None
    except TemplateError as error:
        raise PromptError("prompt template unusable", str(error)) from None


def _sampling(run: Run, pair: Pair, predicate: str | None) -> tuple[SamplingParams, int]:
    """How a description is drawn, and which draw of it this is.

    The stream follows from (run's seed, public identity, predicate, draw): not from worker, batch or row.
    """
    draw, most = pair.draw(predicate)
    parts = [str(run.settings.seed), pair.key, "" if predicate is None else f"={predicate}"]
    text = "\n".join(parts + ([str(draw)] if draw else []))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    limit = most or run.settings.max_new_tokens
    return SamplingParams(run.settings.temperature, limit, int.from_bytes(digest, "big")), draw


@lru_cache(maxsize=8)
def _template(text: str, run_name: str) -> Template:
    return parse_template(text, f"prompt template of run {run_name}")


@lru_cache(maxsize=64)
def _root(folder: str, prefixes: Prefixes) -> ImageRoot:
    return ImageRoot(Path(folder), prefixes)
