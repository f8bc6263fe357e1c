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
from typing import Any, Protocol

from app.pair import Pair
from app.prompts import Question, Segment, Template, normalised_boxes, render

_VERSION = "v1"


@dataclass(frozen=True)
class Scene:
    """One pair in one image as one model is shown it with one template."""

    model_hash: str
    image_sha256: str
    frame: str  # "stored" or "upright"
    size: tuple[int, int]  # width and height of the frame, in pixels
    pixels: tuple[int | None, int | None]  # fewest and most that the image is scaled to; None is the model's own
    template_hash: str

    def key(self, pair: Pair) -> str:
        """32 hexadecimal digits; raises what ``normalise_box`` raises."""
        boxes = normalised_boxes(pair, self.size)
        return _digest([*self._seen(), self.template_hash, pair.subject, pair.object, boxes])

    def text_key(self, prompt: Sequence[Segment], sampling: Sampling, stream: int, draw: int) -> str:
        """32 hexadecimal digits; the random stream counts only where something is drawn."""
        text, temperature = "".join(part for part, _ in prompt), sampling.temperature
        drawn = [temperature, stream if temperature > 0 else 0, draw]
        return _digest([*self._seen(), text, *drawn, *_beyond_temperature(sampling)])

    def _seen(self) -> list[Any]:
        return [_VERSION, self.model_hash, self.image_sha256, self.frame, self.pixels]


class Sampling(Protocol):
    """How a run samples; its settings are one."""

    @property
    def seed(self) -> int:
        """Of the run's random streams."""
        ...

    @property
    def temperature(self) -> float:
        """0 is greedy."""
        ...

    @property
    def max_new_tokens(self) -> int:
        """Longest description, in tokens."""
        ...

    @property
    def top_p(self) -> float:
        """1 is all tokens."""
        ...

    @property
    def top_k_sampling(self) -> int:
        """0 is all tokens."""
        ...

    @property
    def repetition_penalty(self) -> float:
        """1 is none."""
        ...

    @property
    def presence_penalty(self) -> float:
        """0 is none."""
        ...


@dataclass(frozen=True)
class Wanted:
    """One description that a pair wants."""

    predicate: str | None  # None where one description stands for the pair
    prompt: tuple[Segment, ...]
    stream: int  # 64 bits: the seed of its random stream
    max_new_tokens: int
    key: str


def wanted_texts(pair: Pair, template: Template, settings: Sampling, scene: Scene) -> list[Wanted]:
    """What a pair wants, in the order of its result; a predicate that stands there twice is wanted once, twice.

    Raises what ``render`` raises.
    """
    predicates: tuple[str | None, ...] = pair.predicates if template.style == "per-predicate" else (None,)
    made = {each: _wanted(pair, each, template, settings, scene) for each in dict.fromkeys(predicates)}
    return [made[predicate] for predicate in predicates]


def _wanted(pair: Pair, predicate: str | None, template: Template, settings: Sampling, scene: Scene) -> Wanted:
    prompt = render(template, pair, predicate, scene.size)
    draw, most = pair.draw(predicate)
    stream = _stream(settings.seed, pair.key, predicate, draw)
    key = scene.text_key(prompt, settings, stream, draw)
    return Wanted(predicate, prompt, stream, most or settings.max_new_tokens, key)


def _beyond_temperature(sampling: Sampling) -> list[Any]:
    """What else changes a text, where it does: nothing is added to the keys of runs without it."""
    drawn = sampling.temperature > 0
    values = {
        "top_p": (sampling.top_p, drawn and sampling.top_p < 1.0),
        "top_k": (sampling.top_k_sampling, drawn and sampling.top_k_sampling > 0),
        "repetition_penalty": (sampling.repetition_penalty, sampling.repetition_penalty != 1.0),
        "presence_penalty": (sampling.presence_penalty, sampling.presence_penalty != 0.0),
    }
    return [[name, value] for name, (value, counts) in values.items() if counts]


def _stream(seed: int, identity: str, predicate: str | None, draw: int) -> int:
    """From the run's seed, the pair's public identity, the predicate and the draw: not from worker, batch or row."""
    parts = [str(seed), identity, "" if predicate is None else f"={predicate}", *([str(draw)] if draw else [])]
    digest = hashlib.blake2b("\n".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def known_texts(wanted: Iterable[Wanted], stored: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Those of the stored descriptions that are wanted and serve within the limit of new tokens, by their keys."""
    limits = {each.key: each.max_new_tokens for each in wanted}
    return {each["key"]: each for each in stored if each.get("key") in limits and _serves(each, limits[each["key"]])}


def copied(description: dict[str, Any], wanted: Wanted) -> dict[str, Any]:
    """A stored description as the answer to another pair's, or an older request's, same wish."""
    return description | {"reused": True, "key": wanted.key, "predicate": wanted.predicate}


def is_verified(description: dict[str, Any], question: Question) -> bool:
    """Whether the question was put and answered, for all that the description is about."""
    found = description.get("verification")
    answers = found if isinstance(found, list) else [found]
    return description.get("question") == question.template.hash and None not in answers


def _serves(description: dict[str, Any], max_new_tokens: int) -> bool:
    if description["finish_reason"] == "stop":
        return bool(description["tokens"] <= max_new_tokens)
    return bool(description["tokens"] == max_new_tokens)


def _digest(parts: list[Any]) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
