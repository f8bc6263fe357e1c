"""From what was submitted to what the scheduler takes: prompts tokenised once their image is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from workers.engine.api import PromptTooLong, Request
from workers.engine.fault_isolation import bisect_batch
from workers.engine.packed.image_loader import ImageLoader
from workers.engine.packed.prefix_cache import PrefixCache
from workers.engine.packed.scheduler import Group, group_sequences
from workers.engine.packed.scheduler import Sequence as Running
from workers.engine.processor import InputProcessor, Pixels
from workers.engine.request_queue import PendingRequest


class Preprocessor:
    """Requests that wait for their image, and the images that wait to be encoded."""

    def __init__(self, processor: InputProcessor, context: int, cache: PrefixCache, wake: Callable[[], None]) -> None:
        self.cache = cache  # what it holds need not be loaded again
        self._processor, self._context = processor, context
        self._loader = ImageLoader(processor, wake)
        self._waiting: list[PendingRequest] = []

    def add(self, batch: Sequence[PendingRequest]) -> None:
        """Begin to load what images they need."""
        self._waiting += batch
        for pending in batch:
            self._known(pending.request)

    def any_ready(self) -> bool:
        """Whether ``groups`` would give any."""
        return any(self._known(pending.request) for pending in self._waiting)

    def groups(self) -> list[Group]:
        """The sequences whose image is known by now, those of one submit and image together."""
        ready: dict[tuple[int, str], list[PendingRequest]] = {}
        later = []
        for pending in self._waiting:
            if self._known(pending.request):
                ready.setdefault((pending.group, pending.request.image.key), []).append(pending)
            else:
                later.append(pending)
        self._waiting = later
        made: list[Group] = []
        for batch in ready.values():
            bisect_batch(partial(self._append_group, made), batch, self._fail)
        return made

    def pixels(self, request: Request) -> Pixels:
        """An image to encode; raises what loading it raised."""
        return self._loader.want(request.image).result()

    def forget(self, key: str) -> None:
        """An image is encoded, or cannot be."""
        self._loader.forget(key)

    def close(self) -> None:
        """Load nothing more."""
        self._loader.close()

    def _known(self, request: Request) -> bool:
        image = request.image
        return image.key in self.cache or self._loader.want(image).done()

    def _fail(self, pending: PendingRequest, error: Exception) -> None:
        self._loader.forget(pending.request.image.key)
        pending.fail(error)

    def _append_group(self, made: list[Group], batch: Sequence[PendingRequest]) -> None:
        key = batch[0].request.image.key
        cached = key in self.cache
        visual = self.cache.use(key).visual if cached else self.pixels(batch[0].request).tokens
        prompts = [self._tokens(pending.request, visual) for pending in batch]
        prefix = self._processor.prefix_length(prompts[0])
        shared, start = group_sequences(prefix, prompts)
        group = Group(key, prompts[0][:prefix], shared)
        for pending, ids in zip(batch, prompts, strict=True):
            group.waiting.append(_sequence(pending, group, ids, start))
        made.append(group)

    def _tokens(self, request: Request, visual: int) -> list[int]:
        ids = self._processor.tokens(request.prompt, visual)
        longest = len(ids) + request.sampling.max_new_tokens
        if longest > self._context:
            raise PromptTooLong(f"prompt and answer of {longest} tokens exceed the context of {self._context}")
        return ids


def _sequence(pending: PendingRequest, group: Group, ids: list[int], start: int) -> Running:
    sampling = pending.request.sampling
    return Running(
        pending=pending,
        group=group,
        own=ids[start:],
        prompt_tokens=len(ids),
        limit=sampling.max_new_tokens,
        temperature=sampling.temperature,
        seed=sampling.seed % 2**64,
    )
