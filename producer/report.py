"""What an enqueue says to a person: counts, and for what was dropped some places to look at."""

from __future__ import annotations

from collections.abc import Iterator

from app.commands import table
from app.inputs.drops import HINTS, Reason
from producer.prepared import Prepared

_EXAMPLES = 3
_EXPECTED = {Reason.NO_RELATION, Reason.ONLY_NO_RELATION, Reason.BELOW_TOP_K, Reason.NO_CANDIDATES}
"""Reasons that are in the nature of the inputs: counted, but not worth examples."""


def describe(prepared: Prepared, enqueued: int | None = None) -> str:
    """The report as text; ``results drops`` shows more examples."""
    stored = prepared.stored
    rows: list[tuple[str, object]] = [("run", prepared.run.name), ("pairs", stored.pairs)]
    for name, count in (("new", stored.new), ("changed", stored.changed), ("no longer in the inputs", stored.removed),
                        ("to be checked (image file changed)", stored.to_check),
                        ("to be verified", stored.to_verify)):  # fmt: skip
        if count and not (name == "new" and count == stored.pairs):
            rows.append((name, count))
    texts = prepared.texts
    rows.append(("descriptions to generate", texts.new))
    rows += [(name, count) for name, count in (("descriptions known already", texts.reused),
                                               ("descriptions to be checked", texts.to_check)) if count]  # fmt: skip
    if enqueued is not None:
        rows.append(("enqueued", enqueued))
    rows += [("already done", prepared.counts.done), ("failed before", prepared.counts.failed)]
    rows += [(f"dropped: {reason}", count) for reason, count in prepared.dropped.items()]
    lines = [table(rows)]
    for reason in prepared.dropped:
        if reason not in _EXPECTED:
            lines += [f"  {reason}: {example}" for example in prepared.examples.get(reason, [])[:_EXAMPLES]]
            lines += [f"  {reason}: {hint}" for known, hint in HINTS.items() if known == reason]
    return "\n".join(lines)


def warnings(prepared: Prepared) -> Iterator[str]:
    """What should not be overlooked."""
    dropped = prepared.pairs_dropped - sum(prepared.dropped.get(str(reason), 0) for reason in _EXPECTED)
    if dropped > prepared.stored.pairs:
        yield (
            f"WARNING: {dropped} pairs were dropped and {prepared.stored.pairs} kept: are the images, the ids and the "
            "class names those of these candidates?"
        )
    if prepared.box_warning:
        yield f"WARNING: {prepared.box_warning}"
    if prepared.resent:
        yield f"{prepared.resent} pairs that had failed for outside reasons are tried again"
