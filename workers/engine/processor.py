"""Prompts to token ids and images to pixels, by the model's own chat template, tokenizer and image
processor.

The tokenizer and the PIL image processor are loaded apart from each other, because ``AutoProcessor`` of these
models needs torchvision for a video processor that nothing here uses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils import cached_file

from workers.engine.api import (
    THINK_BEGIN,
    THINK_END,
    Answer,
    CandidatesAlike,
    CannotServe,
    EngineError,
    ImageSource,
    ImageUnreadable,
    Segment,
    answer_of,
)

_MARK = "\ue000the prompt\ue001"  # private-use characters: in no template and in no added token


@dataclass(frozen=True)
class Pixels:
    """An image as the vision tower takes it."""

    values: Tensor  # (patches, channels * patch volume), float32
    grid: Tensor  # (1, 3): frames, rows and columns of patches
    tokens: int  # visual tokens the language model sees


class InputProcessor:
    """Builds the inputs of one model."""

    def __init__(self, tokenizer: Any, images: Any, image_token: str, end_token_ids: frozenset[int]) -> None:
        """``end_token_ids``: after any of these the model writes no more."""
        self.tokenizer = tokenizer
        self.end_token_ids = end_token_ids
        self._images = images
        self.image_token_id = int(tokenizer.convert_tokens_to_ids(image_token))
        rendered = render(tokenizer, _MARK)
        if rendered.count(_MARK) != 1 or rendered.count(image_token) != 1:
            raise CannotServe(f"the chat template does not give one {image_token} and the text once: {rendered!r}")
        self._head, self._tail = rendered.split(_MARK)
        self._added = added_tokens(tokenizer)
        self._reasoning = Reasoning(tokenizer, self._tail)

    def pixels(self, source: ImageSource) -> Pixels:
        """Load, scale and cut an image into patches.

        Raises ``ImageUnreadable`` where the processor refuses it, and whatever the image's ``load`` raises.
        """
        image = source.load()
        try:
            inputs = self._images(images=[image.convert("RGB")], return_tensors="pt", **self._limits(source))
        except (OSError, ValueError) as error:
            raise ImageUnreadable(f"the image cannot be preprocessed: {error}") from error
        grid = inputs["image_grid_thw"]
        return Pixels(inputs["pixel_values"], grid, int(grid.prod()) // self._images.merge_size**2)

    def _limits(self, source: ImageSource) -> dict[str, Any]:
        if source.min_pixels is None and source.max_pixels is None:
            return {}
        shortest = source.min_pixels or self._images.size["shortest_edge"]
        longest = source.max_pixels or self._images.size["longest_edge"]
        return {"size": {"shortest_edge": min(shortest, longest), "longest_edge": max(shortest, longest)}}

    def tokens(self, prompt: Sequence[Segment], visual: int) -> list[int]:
        """Token ids of a user turn of the image (``visual`` tokens of it) and then the prompt's text."""
        segments = [(self._head, False), *prompt, (self._tail, False)]
        ids = encode(self.tokenizer, segments, self._added)
        at = ids.index(self.image_token_id)
        return ids[:at] + [self.image_token_id] * visual + ids[at + 1 :]

    def prefix_length(self, ids: Sequence[int]) -> int:
        """Tokens of a prompt up to its last visual one: what all prompts over an image share."""
        return len(ids) - list(reversed(ids)).index(self.image_token_id)

    def first_tokens(self, candidates: Sequence[str]) -> list[int]:
        """As ``first_tokens`` says."""
        return first_tokens(self.tokenizer, candidates)

    def text(self, ids: Sequence[int]) -> str:
        """Decoded new tokens, special ones skipped."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def answer(self, ids: Sequence[int]) -> Answer:
        """Decoded new tokens, the reasoning apart."""
        return self._reasoning.part(ids, self.text)


def load_processor(
    model: str, *, revision: str | None, image_token_id: int, min_pixels: int | None, max_pixels: int | None
) -> InputProcessor:
    """Tokenizer and image processor of a Qwen-VL model folder or hub name, with the pixel limits laid over
    its own. Raises ``CannotServe`` where there is no chat template or no end of text.
    """
    tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
    use_legacy_template(tokenizer, model, revision)
    ends = end_tokens(model, revision, tokenizer, tokenizer)
    images = Qwen2VLImageProcessorPil.from_pretrained(model, revision=revision)
    size = dict(images.size)
    size["shortest_edge"] = min_pixels or size["shortest_edge"]
    size["longest_edge"] = max_pixels or size["longest_edge"]
    images.size = type(images.size)(**size) if not isinstance(images.size, dict) else size
    return InputProcessor(tokenizer, images, str(tokenizer.convert_ids_to_tokens(image_token_id)), ends)


class Reasoning:
    """Where a model's reasoning ends and its answer begins."""

    def __init__(self, tokenizer: Any, tail: str) -> None:
        """``tail``: what the chat template puts after the prompt's text."""
        self._opened = THINK_BEGIN in tail.rpartition(THINK_END)[2]
        ids = (tokenizer.convert_tokens_to_ids(mark) for mark in (THINK_BEGIN, THINK_END))
        self._begin, self._end = (None if each == tokenizer.unk_token_id else each for each in ids)

    def part(self, ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> Answer:
        """The answer of new tokens. A close is looked for among them: decoded, it may be skipped as a special token."""
        if self._end is not None and self._end in ids:
            at = list(ids).index(self._end)
            return answer_of(decode(ids[:at]) + THINK_END + decode(ids[at + 1 :]), opened=True)
        begun = self._begin is not None and self._begin in ids[:1]
        return answer_of(decode(ids), opened=self._opened or begun)


def render(renderer: Any, text: str) -> str:
    """The chat template around a user turn of one image and then ``text``, up to where the model begins to
    write. Raises ``CannotServe`` where the template cannot be used.
    """
    try:
        return str(renderer.apply_chat_template([_user(text)], tokenize=False, add_generation_prompt=True))
    except (ValueError, TypeError, TemplateError) as error:
        raise CannotServe(f"the chat template cannot be used: {' '.join(str(error).split())}") from error


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}


def end_tokens(model: str, revision: str | None, tokenizer: Any, renderer: Any) -> frozenset[int]:
    """The ids after which a model writes no more: all that its generation configuration, its configuration, its
    tokenizer and its chat template (what comes after an answer) name. Each of them is wrong in some checkpoint, and a
    text that runs on over its end is two answers in one.

    ``renderer`` has the chat template: the tokenizer or a processor. Raises ``CannotServe`` where none is known.
    """
    known = {int(each) for each in tokenizer.added_tokens_decoder} | {int(each) for each in tokenizer.all_special_ids}
    config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
    ids = set[int]()
    for part in (config, config.get_text_config()):
        # What a configuration's class supposes where the checkpoint says nothing may be any token of the vocabulary.
        ids |= _ids(getattr(part, "eos_token_id", None)) & known
    if (path := _file_of(model, "generation_config.json", revision)) is not None:
        try:
            ids |= _ids(json.loads(path.read_text(encoding="utf-8")).get("eos_token_id"))
        except (ValueError, TypeError, AttributeError) as error:
            raise CannotServe(f"{path}: eos_token_id cannot be read: {error}") from error
    ids |= _ids(tokenizer.eos_token_id) | _ids(_turn_end(tokenizer, renderer))
    if not ids:
        raise CannotServe(f"{model}: no end of text is known: set eos_token_id in its generation_config.json")
    return frozenset(ids)


def _ids(value: Any) -> set[int]:
    """Of an ``eos_token_id``: one, several or none."""
    return set() if value is None else {int(each) for each in (value if isinstance(value, list | tuple) else [value])}


def _turn_end(tokenizer: Any, renderer: Any) -> int | None:
    """The added token that the chat template puts after an answer, if it puts one there."""
    parts: tuple[Any, ...] = ([{"type": "text", "text": _MARK}], _MARK)  # templates take the one or the other
    for content in parts:
        try:
            turns = [_user("?"), {"role": "assistant", "content": content}]
            rendered = str(renderer.apply_chat_template(turns, tokenize=False))
        except (ValueError, TypeError, TemplateError):
            continue
        after = rendered.rpartition(_MARK)[2].lstrip() if _MARK in rendered else ""
        if found := added_tokens(tokenizer).match(after):
            return int(tokenizer.convert_tokens_to_ids(found[0]))
    return None  # a template for single turns


def added_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Matches any token that the tokenizer takes out of a text before it splits words, longest first."""
    contents = {str(token.content) for token in tokenizer.added_tokens_decoder.values()}
    ordered = sorted(filter(None, contents), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")


def first_tokens(tokenizer: Any, candidates: Sequence[str]) -> list[int]:
    """The id of each candidate's first token.

    Raises ``CandidatesAlike`` where two have the same one, and ``EngineError`` for an empty candidate.
    """
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in candidates]
    if not all(encoded):
        raise EngineError(f"a candidate without any token among {list(candidates)!r}")
    ids = [int(tokens[0]) for tokens in encoded]
    if len(set(ids)) < len(ids):
        raise CandidatesAlike(f"candidates that begin with the same token: {list(candidates)!r}")
    return ids


def encode(tokenizer: Any, segments: Sequence[Segment], added: re.Pattern[str]) -> list[int]:
    """Token ids of the joined segments, tokenised whole.

    Only a data segment in which an added token occurs, in whole or in part, is encoded apart from the rest,
    as plain text: a name may spell a control token, it never becomes one. Everything else is tokenised whole, since a
    tokenizer splits a text otherwise at the seams.
    """
    ids: list[int] = []
    for text, plain in _runs(segments, added):
        for chunk in _broken(text, added) if plain else [text]:
            ids += tokenizer(chunk, add_special_tokens=False)["input_ids"]
    return ids


def _runs(segments: Sequence[Segment], added: re.Pattern[str]) -> Iterable[Segment]:
    """Neighbouring segments joined, but for the data segments that an added token touches: those alone,
    marked.
    """
    whole = "".join(text for text, _ in segments)
    touched = [match.span() for match in added.finditer(whole)]
    pending, start = "", 0
    for text, data in segments:
        end = start + len(text)
        if data and any(first < end and last > start for first, last in touched):
            yield pending, False
            yield text, True
            pending = ""
        else:
            pending += text
        start = end
    yield pending, False


def _broken(text: str, added: re.Pattern[str]) -> Iterable[str]:
    """``text`` in chunks of which none holds an added token: each is cut after its first character."""
    while match := added.search(text):
        cut = match.start() + 1
        yield text[:cut]
        text = text[cut:]
    yield text


def use_legacy_template(renderer: Any, model: str, revision: str | None) -> None:
    """Give a tokenizer or processor without a chat template the one that older models keep in a file of its own.

    Raises ``CannotServe`` where that file holds none.
    """
    if renderer.chat_template is not None:
        return
    path = _file_of(model, "chat_template.json", revision)
    if path is None:
        raise CannotServe(f"{model}: no chat template in its tokenizer_config.json, chat_template.jinja or .json")
    try:
        renderer.chat_template = str(json.loads(path.read_text(encoding="utf-8"))["chat_template"])
    except (ValueError, LookupError, TypeError) as error:
        raise CannotServe(f"{path}: no {{'chat_template': TEXT}} ({type(error).__name__}: {error})") from error


def _file_of(model: str, name: str, revision: str | None) -> Path | None:
    """A file of a model folder, or of a hub's repository; None where it has none."""
    found = cached_file(
        model, name, revision=revision, _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    return None if found is None else Path(str(found))
