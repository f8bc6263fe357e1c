"""From a claimed pair to what an engine is asked: image, prompts, random streams, and the keys of the answers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache

from app.boxes import BoxMalformed, BoxOutside, Frame, frame_of
from app.database.claim_rows import Claim
from app.database.records import RunSettings
from app.errors import FailureReason, PromptError, TemplateError
from app.prompts import Template, parse_template
from app.settings import Settings
from app.text_keys import Scene, Wanted, wanted_texts
from workers.engine.api import ImageSource, Request, SamplingParams
from workers.image_decoding import ImageFile, image_place, load_image, open_image
from workers.image_readers import ImageReaders


@dataclass(frozen=True)
class PairRequests:
    """What is asked of one pair, in the order of its answers; equal requests are equal objects."""

    wanted: tuple[Wanted, ...]
    requests: tuple[Request, ...]
    scene_key: str
    image: tuple[int, int, str]  # bytes, time of change (ns), sha256


def requests_of(claim: Claim, settings: Settings, model_hash: str, readers: ImageReaders) -> PairRequests:
    """One request per predicate, or one for the pair.

    The model is shown the frame that the boxes are in: as stored, or turned upright by EXIF.

    Raises ImageError and PromptError.
    """
    run, pair = claim.run, claim.pair
    file, sha256 = readers.run(os.path.join(claim.image_root, pair.image_path), lambda: _opened(claim, settings))
    frame = frame_of(pair.extent, file.header.stored, file.header.upright)
    pixels = run.settings.min_pixels, run.settings.max_pixels
    scene = Scene(model_hash, sha256, frame, file.header.size(frame), pixels, run.settings.template_hash)
    image = _image(file, frame, pixels, readers)
    try:
        wanted = wanted_texts(pair, _template(run.template["text"], run.name), run.settings, scene)
        scene_key = scene.key(pair)
    except (BoxOutside, BoxMalformed) as error:
        raise PromptError(FailureReason.BOX_OUTSIDE, str(error)) from None
    except TemplateError as error:
        raise PromptError(FailureReason.TEMPLATE_UNUSABLE, str(error)) from None
    made = {each.key: Request(image, each.prompt, _sampling(run.settings, each)) for each in wanted}
    requests = tuple(made[each.key] for each in wanted)
    return PairRequests(tuple(wanted), requests, scene_key, (file.size, file.mtime_ns, sha256))


def _sampling(settings: RunSettings, wanted: Wanted) -> SamplingParams:
    return SamplingParams(
        temperature=settings.temperature,
        max_new_tokens=wanted.max_new_tokens,
        seed=wanted.stream,
        top_p=settings.top_p,
        top_k=settings.top_k_sampling,
        repetition_penalty=settings.repetition_penalty,
        presence_penalty=settings.presence_penalty,
    )


def _opened(claim: Claim, settings: Settings) -> tuple[ImageFile, str]:
    root, path = image_place(claim.image_root, claim.image_prefixes, claim.pair.image_path, settings)
    file = open_image(root, path, settings.max_image_pixels)
    return file, file.sha256()


def _image(file: ImageFile, frame: Frame, pixels: tuple[int | None, int | None], readers: ImageReaders) -> ImageSource:
    return ImageSource(
        key=f"{file.key}:{frame}:{pixels[0]}:{pixels[1]}",
        load=lambda: readers.run(str(file.path), lambda: load_image(file, frame)),
        min_pixels=pixels[0],
        max_pixels=pixels[1],
    )


@lru_cache(maxsize=8)
def _template(text: str, run_name: str) -> Template:
    return parse_template(text, f"prompt template of run {run_name}")
