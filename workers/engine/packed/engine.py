"""The packed engine: every image seen once, every prefix computed once, no slot idle.

One thread runs the loop: take what was submitted, encode the next image, run one packed step in which every
running sequence decodes a token while new ones are prefilled, hand out what is finished.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Sequence as Many
from concurrent.futures import Future
from functools import partial

import numpy as np
from torch import Tensor

from workers.engine.api import Completion, Request
from workers.engine.fault_isolation import bisect_batch, is_out_of_memory
from workers.engine.model import context_length, end_tokens
from workers.engine.openmp import release_team
from workers.engine.packed.memory_planner import MemoryPlanner
from workers.engine.packed.prefix_cache import CachedPrefix, PrefixCache
from workers.engine.packed.preprocess import Preprocessor
from workers.engine.packed.scheduler import Group, Scheduler, SchedulerOutput, Sequence
from workers.engine.processor import InputProcessor
from workers.engine.request_queue import RequestQueue
from workers.engine.runner.model_runner import ModelRunner
from workers.engine.runner.step import DecodeToken, KVSpan, PrefillChunk

log = logging.getLogger(__name__)


class PackedEngine:
    """An ``Engine`` for the Qwen-VL families."""

    def __init__(self, runner: ModelRunner, processor: InputProcessor, memory: MemoryPlanner) -> None:
        self._runner, self._processor, self._memory = runner, processor, memory
        self._ends = set(end_tokens(runner.model))
        self._count: defaultdict[str, float] = defaultdict(float)
        self._cache = PrefixCache(0)
        self._scheduler = Scheduler(0, memory.prefill_tokens)
        self._plan: SchedulerOutput | None = None  # the step being run: what it takes in is in no slot yet
        self._queue = RequestQueue()
        context = context_length(runner.model.config)
        self._preprocessor = Preprocessor(processor, context, self._cache, self._queue.wake)
        release_team()
        self._queue.start(self._loop, "packed-engine")

    def submit(self, requests: Many[Request]) -> list[Future[Completion]]:
        """As ``Engine.submit`` says."""
        return self._queue.submit(requests)

    def stats(self) -> dict[str, float]:
        """Counters since the start.

        ``images`` encoded, ``requests``, ``tokens``, ``steps``, ``slots``, ``preempted``;
        ``seconds_encode``, ``seconds_prefill`` (steps that also prefill), ``seconds_decode``; and
        ``occupancy``, the share of slots at work while anything waited.
        """
        count = dict(self._count)
        count["slots"] = self._scheduler.slots
        return count | {"occupancy": count.get("busy_slots", 0.0) / max(1.0, count.get("wanted_slots", 0.0))}

    def close(self) -> None:
        """As ``Engine.close`` says."""
        self._queue.close()
        self._preprocessor.close()

    def _loop(self) -> None:
        while not self._queue.stopping:
            idle = not self._scheduler.rows and not self._scheduler.waiting
            self._preprocessor.add(self._queue.take(None, wait=idle and not self._preprocessor.any_ready()))
            for group in self._preprocessor.groups():
                self._scheduler.add(group)
            if self._scheduler.rows or self._scheduler.waiting:
                self._advance()

    # -- one step

    def _advance(self) -> None:
        try:
            self._resize_kv_cache()
            self._encode_next()
            self._step()
            self._memory.step_held()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._shrink(error)

    def _resize_kv_cache(self) -> None:
        """Size slots and cache for what is to run: at first, and when longer things come or memory held."""
        wanted = self._memory.sizes(*self._scheduler.longest())
        if wanted is None:
            return
        stacks = self._runner.stacks
        if wanted.slots < stacks.own.slots or wanted.images < stacks.images.slots:
            self._preempt_all()
            self._cache.reset(0)
        self._runner.resize(
            [
                (wanted.images, wanted.image_tokens),
                (wanted.groups, wanted.group_tokens),
                (wanted.slots, wanted.own_tokens),
            ],
            [self._cache.slots(), self._scheduler.taken_group_slots(), range(len(self._scheduler.rows))],
        )
        self._cache.grow(wanted.images)
        self._scheduler.resize(wanted.slots)
        sizes = (wanted.slots, wanted.own_tokens, wanted.images, wanted.image_tokens)
        log.info("%d slots of %d tokens, %d images of %d tokens", *sizes)

    def _encode_next(self) -> None:
        """Compute the prefix of the next image in line, when slots would stay free without it."""
        group = self._scheduler.next_image(self._cache)
        slot = self._cache.reserve(self._scheduler.images_read()) if group else None
        if group is None or slot is None:
            return
        started = time.perf_counter()
        try:
            bisect_batch(partial(self._encode, slot=slot), [group], self._fail_image, raise_memory=True)
        finally:
            if group.image not in self._cache:
                self._cache.release(slot)
        self._preprocessor.forget(group.image)
        self._count["seconds_encode"] += time.perf_counter() - started

    def _encode(self, groups: Many[Group], slot: int) -> None:
        group = groups[0]
        pixels = self._preprocessor.pixels(group.waiting[0].pending.request)
        next_position = self._runner.encode(group.prefix, pixels, slot)
        entry = CachedPrefix(slot, len(group.prefix), pixels.tokens, next_position)
        self._cache.fill(group.image, entry)
        self._count["images"] += 1

    def _fail_image(self, group: Group, error: Exception) -> None:
        for sequence in self._scheduler.drop_image(group.image):
            sequence.pending.fail(error)

    def _step(self) -> None:
        self._plan = plan = self._scheduler.plan(self._cache)
        if plan.sequences:
            bisect_batch(partial(self._run, plan), plan.sequences, self._fail_sequence, raise_memory=True)
        self._plan = None

    def _run(self, plan: SchedulerOutput, some: Many[Sequence]) -> None:
        """Run a plan; of a plan that failed, try ``some`` of its sequences apart from the others."""
        if len(some) < len(plan.sequences):
            self._preempt_all()
            self._runner.step([], [self._alone(sequence, slot) for slot, sequence in enumerate(some)])
            return
        started = time.perf_counter()
        chunks = [self._shared_piece(group) for group in plan.shared]
        first = len(plan.rows)
        chunks += [self._own_piece(sequence, first + at) for at, sequence in enumerate(plan.scheduled_new)]
        logits, order = self._runner.step([self._row(sequence) for sequence in plan.rows], chunks)
        written = plan.rows + [plan.scheduled_new[at - len(plan.shared)] for at in order]
        tokens = self._choose(logits, written)
        self._scheduler.started(plan)
        self._plan = None
        self._account(plan, time.perf_counter() - started)
        for sequence, token in zip(written, tokens, strict=True):
            self._append(sequence, token)

    def _choose(self, logits: Tensor, sequences: list[Sequence]) -> list[int]:
        return self._runner.choose(
            logits,
            np.array([sequence.temperature for sequence in sequences], dtype=np.float32),
            np.array([sequence.seed for sequence in sequences], dtype=np.uint64),
            np.array([len(sequence.new) for sequence in sequences], dtype=np.uint64),
        )

    def _append(self, sequence: Sequence, token: int) -> None:
        """One more token; what it ends leaves its slot at once."""
        stopped = token in self._ends
        if not stopped:
            sequence.new.append(token)
        if stopped or len(sequence.new) == sequence.limit or sequence.pending.future.done():
            self._leave(sequence, "stop" if stopped else "length")

    def _leave(self, sequence: Sequence, reason: str) -> None:
        if gap := self._scheduler.finish(sequence):
            self._runner.stacks.own.move(*gap, self._scheduler.rows[gap[1]].length)
        self._count["requests"] += 1
        self._count["tokens"] += len(sequence.new)
        text = self._processor.text(sequence.new)
        sequence.pending.finish(Completion(text, reason, len(sequence.new), sequence.prompt_tokens))

    def _account(self, plan: SchedulerOutput, seconds: float) -> None:
        self._count["steps"] += 1
        self._count["seconds_prefill" if plan.scheduled_new or plan.shared else "seconds_decode"] += seconds
        rows = len(self._scheduler.rows)
        self._count["busy_slots"] += rows
        self._count["wanted_slots"] += min(self._scheduler.slots, rows + self._scheduler.waiting)

    # -- what goes wrong

    def _fail_sequence(self, sequence: Sequence, error: Exception) -> None:
        self._preempt_all()
        self._scheduler.drop(sequence)
        sequence.pending.fail(error)

    def _shrink(self, error: Exception) -> None:
        """Free everything and go on smaller; what has been written is kept, and its prompt computed again."""
        self._preempt_all()
        self._runner.forget()
        self._cache.reset(0)
        if not self._memory.shrink():
            sequence = self._scheduler.first_waiting()
            self._scheduler.drop(sequence)
            sequence.pending.fail(error)

    def _preempt_all(self) -> None:
        """Send all that runs or was about to back to waiting."""
        self._count["preempted"] += len(self._scheduler.rows)
        self._scheduler.preempt(self._plan.scheduled_new if self._plan else [])
        self._plan = None

    # -- sequences as the runner takes them

    def _row(self, sequence: Sequence) -> DecodeToken:
        image, position = self._after_image(sequence.group)
        at = sequence.length - 1
        shared = len(sequence.group.shared)
        return DecodeToken(sequence.new[-1], position + shared + at, at, image, _group_prefix(sequence.group))

    def _own_piece(self, sequence: Sequence, slot: int) -> PrefillChunk:
        image, position = self._after_image(sequence.group)
        ids, shared = sequence.own + sequence.new, _group_prefix(sequence.group)
        return PrefillChunk(ids, position + len(sequence.group.shared), image, shared, slot, shared=False)

    def _shared_piece(self, group: Group) -> PrefillChunk:
        image, position = self._after_image(group)
        return PrefillChunk(group.shared, position, image, None, group.slot or 0, shared=True)

    def _alone(self, sequence: Sequence, slot: int) -> PrefillChunk:
        """A sequence without its group, as a trial."""
        image, position = self._after_image(sequence.group)
        ids = (sequence.group.shared + sequence.own + sequence.new)[: self._runner.stacks.own.capacity]
        return PrefillChunk(ids, position, image, None, slot, shared=False)

    def _after_image(self, group: Group) -> tuple[KVSpan, int]:
        entry = self._cache.use(group.image)
        return KVSpan(entry.slot, entry.tokens), entry.next_position


def _group_prefix(group: Group) -> KVSpan | None:
    return None if group.slot is None else KVSpan(group.slot, len(group.shared))
