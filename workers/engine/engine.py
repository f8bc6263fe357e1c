"""The fast engine: every picture seen once, every prefix computed once, no slot idle.

One thread runs the loop: take what was submitted, encode the next picture, run one packed step in which every
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

from workers.engine.arrivals import Arrivals
from workers.engine.boundary import is_out_of_memory, run_divided
from workers.engine.decode_part import Row
from workers.engine.generation import Description, Generation
from workers.engine.inbox import Inbox
from workers.engine.kv_stack import Prefix
from workers.engine.memory import MemoryPlanner
from workers.engine.model_runner import ModelRunner
from workers.engine.plain import context_length, end_tokens
from workers.engine.prefill_part import Piece
from workers.engine.prefix_cache import CachedPrefix, PrefixCache
from workers.engine.prompting import Prompter
from workers.engine.scheduler import Group, Plan, Scheduler, Sequence
from workers.engine.threads import release_team

log = logging.getLogger(__name__)


class FastEngine:
    """An ``Engine`` for the Qwen-VL families."""

    def __init__(self, runner: ModelRunner, prompter: Prompter, memory: MemoryPlanner) -> None:
        self._runner, self._prompter, self._memory = runner, prompter, memory
        self._ends = set(end_tokens(runner.model))
        self._count: defaultdict[str, float] = defaultdict(float)
        self._cache = PrefixCache(0)
        self._scheduler = Scheduler(0, memory.prefill_tokens)
        self._plan: Plan | None = None  # the step being run: what it takes in is in no slot yet
        self._inbox = Inbox()
        context = context_length(runner.model.config)
        self._arrivals = Arrivals(prompter, context, self._cache, self._inbox.wake)
        release_team()
        self._inbox.start(self._loop, "fast-engine")

    def submit(self, generations: Many[Generation]) -> list[Future[Description]]:
        """As ``Engine.submit`` says."""
        return self._inbox.submit(generations)

    def stats(self) -> dict[str, float]:
        """Counters since the start.

        ``pictures`` encoded, ``generations``, ``tokens``, ``steps``, ``slots``, ``preempted``;
        ``seconds_encode``, ``seconds_prefill`` (steps that also prefill), ``seconds_decode``; and
        ``occupancy``, the share of slots at work while anything waited.
        """
        count = dict(self._count)
        count["slots"] = self._scheduler.slots
        return count | {"occupancy": count.get("busy_slots", 0.0) / max(1.0, count.get("wanted_slots", 0.0))}

    def close(self) -> None:
        """As ``Engine.close`` says."""
        self._inbox.close()
        self._arrivals.close()

    def _loop(self) -> None:
        while not self._inbox.stopping:
            idle = not self._scheduler.rows and not self._scheduler.waiting
            self._arrivals.add(self._inbox.take(None, wait=idle and not self._arrivals.any_ready()))
            for group in self._arrivals.groups():
                self._scheduler.add(group)
            if self._scheduler.rows or self._scheduler.waiting:
                self._advance()

    # -- one step

    def _advance(self) -> None:
        try:
            self._fit()
            self._encode_next()
            self._step()
            self._memory.step_held()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._shrink(error)

    def _fit(self) -> None:
        """Size slots and cache for what is to run: at first, and when longer things come or memory held."""
        wanted = self._memory.sizes(*self._scheduler.longest())
        if wanted is None:
            return
        stacks = self._runner.stacks
        if wanted.slots < stacks.own.slots or wanted.pictures < stacks.pictures.slots:
            self._retreat()
            self._cache.reset(0)
        self._runner.resize(
            [
                (wanted.pictures, wanted.picture_tokens),
                (wanted.groups, wanted.group_tokens),
                (wanted.slots, wanted.own_tokens),
            ],
            [self._cache.slots(), self._scheduler.taken_group_slots(), range(len(self._scheduler.rows))],
        )
        self._cache.grow(wanted.pictures)
        self._scheduler.resize(wanted.slots)
        sizes = (wanted.slots, wanted.own_tokens, wanted.pictures, wanted.picture_tokens)
        log.info("%d slots of %d tokens, %d pictures of %d tokens", *sizes)

    def _encode_next(self) -> None:
        """Compute the prefix of the next picture in line, when slots would stay free without it."""
        group = self._scheduler.next_picture(self._cache)
        slot = self._cache.reserve(self._scheduler.pictures_read()) if group else None
        if group is None or slot is None:
            return
        started = time.perf_counter()
        try:
            run_divided(partial(self._encode, slot=slot), [group], self._fail_picture, raise_memory=True)
        finally:
            if group.picture not in self._cache:
                self._cache.release(slot)
        self._arrivals.forget(group.picture)
        self._count["seconds_encode"] += time.perf_counter() - started

    def _encode(self, groups: Many[Group], slot: int) -> None:
        group = groups[0]
        pixels = self._arrivals.pixels(group.waiting[0].request.generation)
        next_position = self._runner.encode(group.prefix, pixels, slot)
        entry = CachedPrefix(slot, len(group.prefix), pixels.tokens, next_position)
        self._cache.fill(group.picture, entry)
        self._count["pictures"] += 1

    def _fail_picture(self, group: Group, error: Exception) -> None:
        for sequence in self._scheduler.drop_picture(group.picture):
            sequence.request.fail(error)

    def _step(self) -> None:
        self._plan = plan = self._scheduler.plan(self._cache)
        if plan.sequences:
            run_divided(partial(self._run, plan), plan.sequences, self._fail_sequence, raise_memory=True)
        self._plan = None

    def _run(self, plan: Plan, some: Many[Sequence]) -> None:
        """Run a plan; of a plan that failed, try ``some`` of its sequences apart from the others."""
        if len(some) < len(plan.sequences):
            self._retreat()
            self._runner.step([], [self._alone(sequence, slot) for slot, sequence in enumerate(some)])
            return
        started = time.perf_counter()
        pieces = [self._shared_piece(group) for group in plan.shared]
        first = len(plan.rows)
        pieces += [self._own_piece(sequence, first + at) for at, sequence in enumerate(plan.entering)]
        logits, order = self._runner.step([self._row(sequence) for sequence in plan.rows], pieces)
        written = plan.rows + [plan.entering[at - len(plan.shared)] for at in order]
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
        if stopped or len(sequence.new) == sequence.limit or sequence.request.future.done():
            self._leave(sequence, "stop" if stopped else "length")

    def _leave(self, sequence: Sequence, reason: str) -> None:
        if gap := self._scheduler.finish(sequence):
            self._runner.stacks.own.move(*gap, self._scheduler.rows[gap[1]].length)
        self._count["generations"] += 1
        self._count["tokens"] += len(sequence.new)
        text = self._prompter.text(sequence.new)
        sequence.request.finish(Description(text, reason, len(sequence.new), sequence.prompt_tokens))

    def _account(self, plan: Plan, seconds: float) -> None:
        self._count["steps"] += 1
        self._count["seconds_prefill" if plan.entering or plan.shared else "seconds_decode"] += seconds
        rows = len(self._scheduler.rows)
        self._count["busy_slots"] += rows
        self._count["wanted_slots"] += min(self._scheduler.slots, rows + self._scheduler.waiting)

    # -- what goes wrong

    def _fail_sequence(self, sequence: Sequence, error: Exception) -> None:
        self._retreat()
        self._scheduler.drop(sequence)
        sequence.request.fail(error)

    def _shrink(self, error: Exception) -> None:
        """Free everything and go on smaller; what has been written is kept, and its prompt computed again."""
        self._retreat()
        self._runner.forget()
        self._cache.reset(0)
        if not self._memory.shrink():
            sequence = self._scheduler.first_waiting()
            self._scheduler.drop(sequence)
            sequence.request.fail(error)

    def _retreat(self) -> None:
        """Send all that runs or was about to back to waiting."""
        self._count["preempted"] += len(self._scheduler.rows)
        self._scheduler.preempt(self._plan.entering if self._plan else [])
        self._plan = None

    # -- sequences as the runner takes them

    def _row(self, sequence: Sequence) -> Row:
        picture, position = self._after_picture(sequence.group)
        at = sequence.length - 1
        shared = len(sequence.group.shared)
        return Row(sequence.new[-1], position + shared + at, at, picture, _group_prefix(sequence.group))

    def _own_piece(self, sequence: Sequence, slot: int) -> Piece:
        picture, position = self._after_picture(sequence.group)
        ids, shared = sequence.own + sequence.new, _group_prefix(sequence.group)
        return Piece(ids, position + len(sequence.group.shared), picture, shared, slot, shared=False)

    def _shared_piece(self, group: Group) -> Piece:
        picture, position = self._after_picture(group)
        return Piece(group.shared, position, picture, None, group.slot or 0, shared=True)

    def _alone(self, sequence: Sequence, slot: int) -> Piece:
        """A sequence without its group, as a trial."""
        picture, position = self._after_picture(sequence.group)
        ids = (sequence.group.shared + sequence.own + sequence.new)[: self._runner.stacks.own.capacity]
        return Piece(ids, position, picture, None, slot, shared=False)

    def _after_picture(self, group: Group) -> tuple[Prefix, int]:
        entry = self._cache.use(group.picture)
        return Prefix(entry.slot, entry.tokens), entry.next_position


def _group_prefix(group: Group) -> Prefix | None:
    return None if group.slot is None else Prefix(group.slot, len(group.shared))
