"""From what was submitted to what the scheduler takes: images loaded alongside the engine's thread, prompts tokenised
once their image's size is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from workers.engine.api import ImageSource, PromptTooLong, Request
from workers.engine.fault_isolation import bisect_batch
from workers.engine.openmp import without_team
from workers.engine.packed.prefix_cache import PrefixCache
from workers.engine.packed.sequence import Sequence as EngineSequence
from workers.engine.packed.sequence import SequenceGroup, split_shared
from workers.engine.processor import InputProcessor, Pixels
from workers.engine.request_queue import PendingRequest

IMAGE_THREADS = 2


class Preprocessor:
    """Requests whose image is being loaded, and the images that are to be encoded."""

    def __init__(
        self, processor: InputProcessor, context_length: int, cache: PrefixCache, wake: Callable[[], None]
    ) -> None:
        """``context_length``: tokens of a prompt and its answer at most; what ``cache`` holds is not loaded again;
        ``wake`` is called when an image is there or cannot be had.
        """
        self._processor, self._context_length, self._cache = processor, context_length, cache
        self._loader = _ImageLoader(processor, wake)
        self._waiting: list[PendingRequest] = []

    def add(self, batch: Sequence[PendingRequest]) -> None:
        """Begin to load the images that these need."""
        self._waiting += batch
        for pending in batch:
            self._known(pending.request)

    @property
    def any_ready(self) -> bool:
        """Whether ``take_groups`` would give any."""
        return any(self._known(pending.request) for pending in self._waiting)

    def take_groups(self) -> list[SequenceGroup]:
        """The sequences whose image is known by now, those of one submit and image together."""
        ready: dict[tuple[int, str], list[PendingRequest]] = {}
        later = []
        for pending in self._waiting:
            if self._known(pending.request):
                ready.setdefault((pending.group, pending.request.image.key), []).append(pending)
            else:
                later.append(pending)
        self._waiting = later
        groups: list[SequenceGroup] = []
        for batch in ready.values():
            self._append_group(groups, batch)
        return groups

    def pixels(self, request: Request) -> Pixels:
        """An image to encode; raises what loading it raised."""
        return self._loader.load(request.image).result()

    def forget(self, image_key: str) -> None:
        """An image is encoded, or cannot be."""
        self._loader.forget(image_key)

    def close(self) -> None:
        """Load nothing more."""
        self._loader.close()

    def _known(self, request: Request) -> bool:
        image = request.image
        return image.key in self._cache or self._loader.load(image).done()

    def _append_group(self, groups: list[SequenceGroup], batch: Sequence[PendingRequest]) -> None:
        """Add the group of these requests over one image; those at fault fail, all of them where it is the image."""
        image = batch[0].request.image
        if image.key in self._cache:
            visual = self._cache.use(image.key).num_visual_tokens
        elif (error := self._loader.load(image).exception()) is not None:
            self.forget(image.key)
            for pending in batch:
                pending.fail(error)
            return
        else:
            visual = self._loader.load(image).result().tokens
        prompts: dict[PendingRequest, _TokenIds] = {}
        bisect_batch(partial(self._tokenise, prompts, visual), batch, PendingRequest.fail)
        if prompts:
            groups.append(self._group(image.key, prompts))

    def _tokenise(self, prompts: dict[PendingRequest, _TokenIds], visual: int, batch: Sequence[PendingRequest]) -> None:
        for pending in batch:
            request = pending.request
            token_ids = self._processor.tokens(request.prompt, visual)
            longest = len(token_ids) + request.sampling.max_new_tokens
            if longest > self._context_length:
                raise PromptTooLong(
                    f"prompt and answer of {longest} tokens exceed the context of {self._context_length}"
                )
            prompts[pending] = _TokenIds(token_ids, self._processor.first_tokens(request.candidates))

    def _group(self, image_key: str, prompts: dict[PendingRequest, _TokenIds]) -> SequenceGroup:
        token_ids = [ids.prompt for ids in prompts.values()]
        end = self._processor.prefix_length(token_ids[0])
        shared, start = split_shared(end, token_ids)
        group = SequenceGroup(image_key, token_ids[0][:end], shared)
        for pending, ids in prompts.items():
            group.waiting.append(_sequence(pending, group, ids, start))
        return group


class _ImageLoader:
    """Loads and preprocesses each image in threads of its own, once at a time."""

    def __init__(self, processor: InputProcessor, ready: Callable[[], None]) -> None:
        self._processor, self._ready = processor, ready
        self._pool = ThreadPoolExecutor(IMAGE_THREADS, "images", initializer=without_team)
        self._pixels: dict[str, Future[Pixels]] = {}

    def load(self, image: ImageSource) -> Future[Pixels]:
        """The image's pixels, sooner or later."""
        if image.key not in self._pixels:
            future = self._pool.submit(self._processor.pixels, image)
            self._pixels[image.key] = future
            future.add_done_callback(lambda _: self._ready())
        return self._pixels[image.key]

    def forget(self, key: str) -> None:
        """Let an image's pixels go; they are loaded again where they are wanted again."""
        self._pixels.pop(key, None)

    def close(self) -> None:
        """Take no more, and leave what is not started."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class _TokenIds(NamedTuple):
    prompt: list[int]
    candidates: list[int]


def _sequence(pending: PendingRequest, group: SequenceGroup, ids: _TokenIds, start: int) -> EngineSequence:
    sampling = pending.request.sampling
    return EngineSequence(
        pending=pending,
        group=group,
        suffix_token_ids=ids.prompt[start:],
        num_prompt_tokens=len(ids.prompt),
        max_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        seed=sampling.seed % 2**64,
        candidates=ids.candidates,
        sampling=sampling,
    )
