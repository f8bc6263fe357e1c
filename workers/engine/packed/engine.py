"""The packed engine: every image seen once, every prefix computed once, no slot idle.

One thread runs the loop: take what was submitted, then step. In a step every running sequence decodes a token while new
ones are prefilled (continuous batching).
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Sequence as Many
from concurrent.futures import Future
from functools import partial

from workers.engine.api import NO_TOKEN, Completion, LogitsNotFinite, Request, TooLittleMemory
from workers.engine.fault_isolation import attempt, bisect_batch, is_out_of_memory
from workers.engine.packed.block_pool import BlockPool
from workers.engine.packed.memory_planner import Planner
from workers.engine.packed.prefix_cache import CachedPrefix, PrefixCache
from workers.engine.packed.preprocess import Preprocessor
from workers.engine.packed.scheduler import Scheduler
from workers.engine.packed.sequence import SchedulerOutput, Sequence, SequenceGroup
from workers.engine.packed.step_inputs import decode_tokens, prefill_chunks, sampling_metadata
from workers.engine.processor import InputProcessor
from workers.engine.request_queue import RequestQueue
from workers.engine.runner.model_runner import ModelRunner
from workers.engine.runner.step import Blocks, KVCacheSlots, KVSpan

log = logging.getLogger(__name__)


class PackedEngine:
    """An ``Engine`` for the Qwen-VL families."""

    def __init__(self, runner: ModelRunner, processor: InputProcessor, memory: Planner) -> None:
        self._runner, self._processor, self._memory = runner, processor, memory
        self._count: defaultdict[str, float] = defaultdict(float)
        self._pool = BlockPool(runner.block_tokens)
        self._cache = PrefixCache(pool=self._pool)
        self._scheduler = Scheduler(self._cache, memory.prefill_tokens, prefill_apart=runner.block_tokens > 0)
        self._spoilt = False  # the KV cache may hold NaN
        self._stalled_at = -1.0  # steps done when nothing could start
        self._at_work_for: tuple[Sequence, ...] = ()  # who fails where memory is short though nothing can be smaller
        self._queue = RequestQueue()
        self._preprocessor = Preprocessor(processor, runner.context_length, self._cache, self._queue.wake)
        self._queue.start(self._loop, "packed-engine")

    def submit(self, requests: Many[Request]) -> list[Future[Completion]]:
        """As ``Engine.submit`` says."""
        return self._queue.submit(requests)

    def stats(self) -> dict[str, float]:
        """Counters since the start.

        ``images`` encoded, ``requests``, ``tokens``, ``steps``, ``slots``, ``preempted``;
        ``seconds_encode``, ``seconds_prefill`` (steps that also prefill), ``seconds_decode``; where decoding steps
        are replayed as graphs, steps ``replayed`` and graphs ``captured``; and ``occupancy``, the share of all slots
        that were at work, mean of the steps.
        """
        count = dict(self._count) | self._runner.stats()
        count.setdefault("preempted", 0.0)
        count["slots"] = self._scheduler.slots
        return count | {"occupancy": count.get("busy_slots", 0.0) / max(1.0, count.get("possible_slots", 0.0))}

    def close(self) -> None:
        """As ``Engine.close`` says; the KV cache's memory is free when it returns."""
        self._queue.close()
        self._preprocessor.close()
        self._runner.release_kv_cache()

    def step(self) -> None:
        """Give every running sequence its next token, and start new ones."""
        if self._spoilt:
            self._wipe()
        self._resize_kv_cache()
        encoded = self._encode_next_image()
        output = self._scheduler.schedule()
        if not (encoded or output.involved):
            self._break_stall()
        self._commit(*self._run(output))
        self._memory.step_fitted()

    def _loop(self) -> None:
        while not self._queue.stopping:
            idle = not self._scheduler.has_work and not self._preprocessor.any_ready
            self._preprocessor.add(self._queue.take(None, wait=idle))
            for group in self._preprocessor.take_groups():
                self._scheduler.add(group)
            if self._scheduler.has_work:
                try:
                    self.step()
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    self._shrink(error)

    # -- the parts of a step

    def _resize_kv_cache(self) -> None:
        """Give the KV cache room for what is waiting: at first, and when longer prompts come or memory was enough."""
        wanted = self._memory.sizes(*self._scheduler.longest())
        if wanted is None:
            return
        self._at_work_for = self._scheduler.longest_waiting()
        if wanted.slots < self._scheduler.slots or wanted.images < self._cache.num_slots:
            self._preempt_all()
            self._cache.clear()
        elif self._runner.frees_before_resize and self._scheduler.slots:  # old and new must not be there at once
            self._preempt_all()
            self._cache.clear()
            self._runner.release_kv_cache()
        running = range(len(self._scheduler.running))
        keep = KVCacheSlots(self._cache.filled_slots(), self._scheduler.taken_group_slots(), running)
        self._runner.resize_kv_cache(wanted, keep)
        if wanted.blocks:
            self._pool.resize(wanted.blocks)
        self._cache.grow(wanted.images)
        self._scheduler.resize(wanted.slots)
        sizes = (wanted.slots, wanted.sequence_tokens, wanted.images, wanted.image_tokens)
        log.info("KV cache: %d slots of %d tokens, %d images of %d tokens, %d blocks", *sizes, wanted.blocks)

    def _encode_next_image(self) -> bool:
        """Compute the prefix of the next image in line, where slots would stay free without it; says whether it did."""
        group = self._scheduler.next_image()
        if group is None:
            return False
        reserved = self._cache.reserve(self._scheduler.images_in_use(), len(group.image_token_ids))
        if reserved is None:
            return False
        started = time.perf_counter()
        self._at_work_for = self._scheduler.waiting_for(group.image_key)
        try:
            error = attempt(partial(self._encode, group, *reserved), raise_memory=True)
        finally:
            if group.image_key not in self._cache:
                self._cache.release(*reserved)
        if error is not None:  # the image is at fault, so all that waits for it fails
            for sequence in self._scheduler.waiting_for(group.image_key):
                self._fail_waiting(sequence, error)
        self._preprocessor.forget(group.image_key)
        self._count["seconds_encode"] += time.perf_counter() - started
        return True

    def _encode(self, group: SequenceGroup, slot: int, blocks: Blocks) -> None:
        span = KVSpan(slot, len(group.image_token_ids), blocks)
        pixels = self._preprocessor.pixels(group.waiting[0].pending.request)
        next_position = self._runner.encode(group.image_token_ids, pixels, span)
        entry = CachedPrefix(slot, span.length, pixels.tokens, next_position, blocks)
        self._cache.fill(group.image_key, entry)
        self._count["images"] += 1

    def _run(self, output: SchedulerOutput) -> tuple[Many[Sequence], list[int]]:
        """Run a step; gives the sequences that got a token, and these: none where it failed, which is dealt with."""
        if not output.involved:
            return (), []
        self._at_work_for = output.involved[:1]
        token_ids: list[int] = []
        error = attempt(lambda: token_ids.extend(self._execute(output)), raise_memory=True)
        if error is None:
            return output.sampled, token_ids
        log.warning("a step of %d sequences failed, each is tried apart: %r", len(output.involved), error)
        self._isolate(output.involved)
        return (), []

    def _execute(self, output: SchedulerOutput) -> list[int]:
        """One step of the model; gives the next token of each sampled sequence."""
        started = time.perf_counter()
        decode, prefill = decode_tokens(output, self._cache), prefill_chunks(output, self._cache)
        out = self._runner.step(decode, prefill, sampling_metadata(output.sampled))
        self._count["steps"] += 1
        self._count["seconds_prefill" if prefill else "seconds_decode"] += time.perf_counter() - started
        running = len(self._scheduler.running)
        self._count["busy_slots"] += running
        self._count["wanted_slots"] += min(self._scheduler.slots, running + self._scheduler.num_waiting)
        for sequence, probabilities in zip(output.sampled, out.probabilities, strict=True):
            sequence.probabilities = probabilities or sequence.probabilities
        self._count["possible_slots"] += self._scheduler.slots
        return out.token_ids

    def _commit(self, sequences: Many[Sequence], token_ids: Many[int]) -> None:
        """Append the tokens; a sequence that ends, or whose logits are no numbers, leaves its slot at once."""
        for sequence, token_id in zip(sequences, token_ids, strict=True):
            if token_id == NO_TOKEN:
                self._drop_noise(sequence)
                continue
            stopped = token_id in self._processor.end_token_ids
            if not stopped:
                sequence.output_token_ids.append(token_id)
            written = len(sequence.output_token_ids)
            if stopped or written == sequence.max_tokens or sequence.pending.future.done():
                self._finish(sequence, "stop" if stopped else "length")

    def _drop_noise(self, sequence: Sequence) -> None:
        """Fail a sequence whose logits are not finite."""
        self._leave_slot(sequence)
        number = len(sequence.output_token_ids) + 1
        sequence.pending.fail(LogitsNotFinite(f"the logits of token {number} hold NaN or infinity"))
        self._spoilt = True

    def _wipe(self) -> None:
        """Forget all keys and values: those of a sequence that failed, or of a prefix that it shared, may be NaN, and
        in a slot that is used again even a masked NaN spoils what is summed over it.
        """
        self._preempt_all()
        while self._cache.evict(()):
            pass
        self._runner.kv_cache.wipe()
        self._spoilt = False

    def _finish(self, sequence: Sequence, reason: str) -> None:
        self._leave_slot(sequence)
        self._count["requests"] += 1
        self._count["tokens"] += len(sequence.output_token_ids)
        error = attempt(partial(self._complete, sequence, reason))
        if error is not None:
            sequence.pending.fail(error)

    def _leave_slot(self, sequence: Sequence) -> None:
        if gap := self._scheduler.finish(sequence):
            self._runner.kv_cache.move(*gap, self._scheduler.running[gap[1]].num_tokens)

    def _complete(self, sequence: Sequence, reason: str) -> None:
        token_ids = sequence.output_token_ids
        text, reasoning, closed = self._processor.answer(token_ids)
        counts = len(token_ids), sequence.num_prompt_tokens
        sequence.pending.finish(Completion(text, reason, *counts, sequence.probabilities, reasoning, closed))

    # -- what goes wrong

    def _isolate(self, sequences: Many[Sequence]) -> None:
        """Find whose fault a failed step is: run its sequences in ever smaller steps, and fail those that fail alone.

        The others get a token each, so that even a step that fails only as a whole goes on.
        """
        self._preempt_all()
        for batch in self._scheduler.isolation_batches(sequences):
            bisect_batch(self._run_apart, batch, self._fail_isolated, raise_memory=True)

    def _run_apart(self, sequences: Many[Sequence]) -> None:
        if self._queue.stopping or self._spoilt:  # they wait, and run when that is mended
            return
        self._preempt_all()
        self._at_work_for = tuple(sequences[:1])
        shared, output = self._scheduler.schedule_only(sequences)
        if shared.shared_groups:
            self._execute(shared)
        self._commit(output.sampled, self._execute(output))

    def _fail_isolated(self, sequence: Sequence, error: Exception) -> None:
        self._preempt_all()
        self._fail_waiting(sequence, error)

    def _fail_waiting(self, sequence: Sequence, error: BaseException) -> None:
        self._scheduler.remove(sequence)
        sequence.pending.fail(error)

    def _break_stall(self) -> None:
        """Nothing runs and nothing can start: what waits holds the memory. Take it back; where that was not it, the
        longest request does not fit at all and fails.
        """
        if self._scheduler.running or not self._scheduler.has_work:
            return
        steps = self._count["steps"]
        self._preempt_all()
        while self._cache.evict(()):
            pass
        if steps == self._stalled_at:
            for sequence in self._scheduler.longest_waiting():
                tokens = sequence.max_context_tokens
                self._fail_waiting(sequence, TooLittleMemory(f"a request of {tokens} tokens does not fit the KV cache"))
        self._stalled_at = steps

    def _shrink(self, error: BaseException) -> None:
        """Free the KV cache and go on with a smaller one; what has been written is kept, and its prompt run again."""
        self._count["out_of_memory"] += 1
        self._preempt_all()
        self._cache.clear()
        self._runner.release_kv_cache()
        if not self._memory.shrink():
            for sequence in self._at_work_for:
                self._fail_waiting(sequence, error)

    def _preempt_all(self) -> None:
        """Send all that runs back to waiting."""
        self._count["preempted"] += self._scheduler.preempt_all()
