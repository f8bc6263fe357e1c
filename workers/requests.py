"""From a claimed pair to what an engine is asked: image, prompts, random streams, and the keys of the answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from app.boxes import BoxMalformed, BoxOutside, Frame, frame_of
from app.database.claim_rows import Claim
from app.database.records import RunSettings
from app.errors import FailureReason, PromptError, TemplateError
from app.prompts import Question, Template, load_question, parse_template, render
from app.settings import Settings
from app.text_keys import Scene, Wanted, copied, is_verified, wanted_texts
from workers.engine.api import Completion, ImageSource, Request, SamplingParams
from workers.image_decoding import ImageFile, image_place, load_image, open_image
from workers.image_readers import ImageReaders

Known = dict[str, dict[str, Any]]
"""Stored descriptions by their keys."""


_ONE_TOKEN = SamplingParams(temperature=0.0, max_new_tokens=1)  # which one it is does not matter, its chances do
_SHARED_WITH_QUESTION = "{object_bbox_str}"  # the last of what a pair's built-in prompts share


@dataclass(frozen=True)
class PairRequests:
    """What is asked of one pair, in the order of its answers; equal requests are equal objects."""

    wanted: tuple[Wanted, ...]
    requests: tuple[Request, ...]
    scene_key: str
    image: tuple[int, int, str]  # bytes, time of change (ns), sha256
    question: Question | None = None
    verifying: dict[str, Request] = field(default_factory=dict)  # by predicate: whether its relation holds
    alike: bool = False  # descriptions and questions begin with the pair's names and boxes, word for word

    def groups(self, known: Known) -> list[list[Request]]:
        """The distinct requests whose answer is not known, descriptions and questions; one group is asked together."""
        new = [each for each, text in zip(self.requests, self.wanted, strict=True) if text.key not in known]
        asked = [each for text in self.wanted for each in self._questions(text, known)]
        groups = [[*new, *asked]] if self.alike else [new, asked]
        return [list(dict.fromkeys(group)) for group in groups]

    def rows(
        self, done: Mapping[Request, Completion], known: Known, as_row: Callable[[Completion, Wanted], dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """The descriptions as they are stored; a question that is not ``done`` leaves None in place of a number."""
        return [
            (copied(known[text.key], text) if text.key in known else as_row(done[request], text))
            | self._verification(text, done, known)
            for request, text in zip(self.requests, self.wanted, strict=True)
        ]

    def _verification(self, text: Wanted, done: Mapping[Request, Completion], known: Known) -> dict[str, Any]:
        asked = self._questions(text, known)
        if self.question is None or not asked:
            return {}
        found = [self.question.probability(done[each].probabilities) if each in done else None for each in asked]
        return {"verification": found if text.predicate is None else found[0], "question": self.question.template.hash}

    def _questions(self, text: Wanted, known: Known) -> list[Request]:
        """Those of one description: its predicate's, or all the pair's; none where the stored one has its answers."""
        if self.question is None or (text.key in known and is_verified(known[text.key], self.question)):
            return []
        return list(self.verifying.values()) if text.predicate is None else [self.verifying[text.predicate]]


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
    seen = file.size, file.mtime_ns, sha256
    if pair.verify is None:
        return PairRequests(tuple(wanted), requests, scene_key, seen)
    question = load_question(pair.verify[0])
    verifying = {
        each: Request(image, render(question.template, pair, each, scene.size), _ONE_TOKEN, question.answers)
        for each in pair.predicates
    }
    beginning, last, _ = question.template.text.partition(_SHARED_WITH_QUESTION)
    alike = run.template["text"].startswith(beginning + last)
    return PairRequests(tuple(wanted), requests, scene_key, seen, question, verifying, alike)


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
