"""From what is scheduled to what the runner takes: token ids, rotary positions and what each sees. No torch."""

from __future__ import annotations

from collections.abc import Sequence as Many

from workers.engine.api import Written
from workers.engine.packed.prefix_cache import PrefixCache
from workers.engine.packed.sequence import SchedulerOutput, Sequence, SequenceGroup
from workers.engine.runner.step import DecodeToken, KVSpan, PrefillChunk, SamplingMetadata


def decode_tokens(output: SchedulerOutput, cache: PrefixCache) -> list[DecodeToken]:
    """The newest token of each sequence that decodes."""
    seen: dict[int, tuple[KVSpan, KVSpan | None, int]] = {}  # by group: what its sequences share, built once a step
    tokens = []
    for sequence in output.decode:
        group = sequence.group
        shared = seen.get(id(group))
        if shared is None:
            image, position = _image(group, cache)
            shared = seen[id(group)] = image, _group_span(group), position + len(group.shared_token_ids)
        offset = sequence.num_tokens - 1
        newest = sequence.output_token_ids[-1]
        tokens.append(DecodeToken(newest, shared[2] + offset, offset, shared[0], shared[1], sequence.blocks))
    return tokens


def prefill_chunks(output: SchedulerOutput, cache: PrefixCache) -> list[PrefillChunk]:
    """The prompts of the sequences that are new, in their order, and the shared prefixes."""
    first_slot = len(output.decode) if output.first_slot is None else output.first_slot
    suffixes = [_suffix(sequence, first_slot + at, cache) for at, sequence in enumerate(output.scheduled_new)]
    return suffixes + [_shared_prefix(group, cache) for group in output.shared_groups]


def sampling_metadata(sequences: Many[Sequence]) -> SamplingMetadata:
    """How the next token of each is drawn."""
    return SamplingMetadata(
        temperatures=[sequence.temperature for sequence in sequences],
        seeds=[sequence.seed for sequence in sequences],
        steps=[len(sequence.output_token_ids) for sequence in sequences],
        candidates=[() if sequence.output_token_ids else sequence.candidates for sequence in sequences],
        written=[_written(sequence) for sequence in sequences],
    )


def _written(sequence: Sequence) -> Written | None:
    sampling = sequence.sampling
    if sampling is None or not (sampling.penalises or sampling.truncates):
        return None
    return Written(sampling, sequence.prompt_token_ids, sequence.output_token_ids)


def _suffix(sequence: Sequence, slot: int, cache: PrefixCache) -> PrefillChunk:
    """All of a sequence's own tokens: the prompt's, and what it had written before it was preempted."""
    group = sequence.group
    image, position = _image(group, cache)
    token_ids = sequence.suffix_token_ids + sequence.output_token_ids
    position += len(group.shared_token_ids)
    return PrefillChunk(token_ids, position, image, _group_span(group), slot, shared=False, blocks=sequence.blocks)


def _shared_prefix(group: SequenceGroup, cache: PrefixCache) -> PrefillChunk:
    if group.slot is None:
        raise ValueError("a shared prefix without a slot")
    image, position = _image(group, cache)
    return PrefillChunk(group.shared_token_ids, position, image, None, group.slot, shared=True, blocks=group.blocks)


def _image(group: SequenceGroup, cache: PrefixCache) -> tuple[KVSpan, int]:
    """The image's span and the rotary position after it."""
    entry = cache.use(group.image_key)
    return KVSpan(entry.slot, entry.num_tokens, entry.blocks), entry.next_position


def _group_span(group: SequenceGroup) -> KVSpan | None:
    return None if group.slot is None else KVSpan(group.slot, len(group.shared_token_ids), group.blocks)
