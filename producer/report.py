"""What an enqueue says to a person: counts, and for what was dropped some places to look at."""

from __future__ import annotations

from app.commands import table
from app.inputs.drops import Reason
from producer.enqueue import Prepared

_EXAMPLES = 3
_EXPECTED = {Reason.NO_RELATION, Reason.ONLY_NO_RELATION, Reason.BELOW_TOP_K, Reason.NO_CANDIDATES}
"""Reasons that are in the nature of the inputs: counted, but not worth examples."""


def describe(prepared: Prepared, enqueued: int | None = None) -> str:
    """The report as text; ``results drops`` shows more examples."""
    rows: list[tuple[str, object]] = [("run", prepared.run.name), ("pairs", prepared.pairs)]
    if enqueued is not None:
        rows.append(("enqueued", enqueued))
    rows += [("already done", prepared.already_done), ("failed before", prepared.failed)]
    rows += [(f"dropped: {reason}", count) for reason, count in prepared.dropped.items()]
    lines = [table(rows)]
    for reason in prepared.dropped:
        if reason not in _EXPECTED:
            lines += [f"  {reason}: {example}" for example in prepared.examples.get(reason, [])[:_EXAMPLES]]
    return "\n".join(lines)
