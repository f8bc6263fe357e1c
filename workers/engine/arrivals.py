"""From what was submitted to what the scheduler takes: prompts tokenised once their picture is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from workers.engine.boundary import run_divided
from workers.engine.generation import Generation, PromptTooLong
from workers.engine.inbox import Request
from workers.engine.pictures import PictureLoader
from workers.engine.prefix_cache import PrefixCache
from workers.engine.prompting import Pixels, Prompter
from workers.engine.scheduler import Group, group_sequences
from workers.engine.scheduler import Sequence as Running


class Arrivals:
    """Requests that wait for their picture, and the pictures that wait to be encoded."""

    def __init__(self, prompter: Prompter, context: int, cache: PrefixCache, wake: Callable[[], None]) -> None:
        self.cache = cache  # what it holds need not be loaded again
        self._prompter, self._context = prompter, context
        self._loader = PictureLoader(prompter, wake)
        self._waiting: list[Request] = []

    def add(self, requests: Sequence[Request]) -> None:
        """Begin to load what pictures they need."""
        self._waiting += requests
        for request in requests:
            self._known(request.generation)

    def any_ready(self) -> bool:
        """Whether ``groups`` would give any."""
        return any(self._known(request.generation) for request in self._waiting)

    def groups(self) -> list[Group]:
        """The sequences whose picture is known by now, those of one submit and picture together."""
        ready: dict[tuple[int, str], list[Request]] = {}
        later = []
        for request in self._waiting:
            if self._known(request.generation):
                ready.setdefault((request.group, request.generation.picture.key), []).append(request)
            else:
                later.append(request)
        self._waiting = later
        made: list[Group] = []
        for requests in ready.values():
            run_divided(partial(self._append_group, made), requests, self._fail)
        return made

    def pixels(self, generation: Generation) -> Pixels:
        """A picture to encode; raises what loading it raised."""
        return self._loader.want(generation.picture).result()

    def forget(self, key: str) -> None:
        """A picture is encoded, or cannot be."""
        self._loader.forget(key)

    def close(self) -> None:
        """Load nothing more."""
        self._loader.close()

    def _known(self, generation: Generation) -> bool:
        picture = generation.picture
        return picture.key in self.cache or self._loader.want(picture).done()

    def _fail(self, request: Request, error: Exception) -> None:
        self._loader.forget(request.generation.picture.key)
        request.fail(error)

    def _append_group(self, made: list[Group], requests: Sequence[Request]) -> None:
        key = requests[0].generation.picture.key
        cached = key in self.cache
        visual = self.cache.use(key).visual if cached else self.pixels(requests[0].generation).tokens
        prompts = [self._tokens(request.generation, visual) for request in requests]
        prefix = self._prompter.prefix_length(prompts[0])
        shared, start = group_sequences(prefix, prompts)
        group = Group(key, prompts[0][:prefix], shared)
        for request, ids in zip(requests, prompts, strict=True):
            group.waiting.append(_sequence(request, group, ids, start))
        made.append(group)

    def _tokens(self, generation: Generation, visual: int) -> list[int]:
        ids = self._prompter.tokens(generation.prompt, visual)
        longest = len(ids) + generation.sampling.max_new_tokens
        if longest > self._context:
            raise PromptTooLong(f"prompt and answer of {longest} tokens exceed the context of {self._context}")
        return ids


def _sequence(request: Request, group: Group, ids: list[int], start: int) -> Running:
    sampling = request.generation.sampling
    return Running(
        request=request,
        group=group,
        own=ids[start:],
        prompt_tokens=len(ids),
        limit=sampling.max_new_tokens,
        temperature=sampling.temperature,
        seed=sampling.seed % 2**64,
    )
