"""What log lines say of a pair and its message, so that an operator finds it again in the inputs."""

from __future__ import annotations

import logging

from app.database.claim_rows import Claim, ClaimStatus, Message

log = logging.getLogger(__name__)

_DROPPED = {
    ClaimStatus.UNKNOWN: (logging.WARNING, "a stale message, of a run or model that is not here"),
    ClaimStatus.HELD: (logging.INFO, "a duplicate message, its pair is claimed by another worker"),
    ClaimStatus.INACTIVE: (logging.INFO, "a message of a paused or cancelled run"),
}


def explain(status: ClaimStatus, message: Message) -> None:
    """Say why a message is dropped; of one whose pair has its outcome nothing is said."""
    if status in _DROPPED:
        level, why = _DROPPED[status]
        log.log(level, "dropped %s: run %s, pair %d", why, *message)


def named(claim: Claim) -> str:
    """A pair in a log line, which names its run and image besides."""
    return f"pair {claim.pair_id}"


def names_of(claim: Claim) -> dict[str, str]:
    """A claimed pair's run, image, subject and object."""
    run = {"run": claim.run.name}
    try:
        pair = claim.pair
        return run | {"image": str(pair.image_id), "subject": str(pair.subject), "object": str(pair.object)}
    except (KeyError, TypeError, ValueError):  # what is stored is no pair, and that is why it fails
        return run | {"image": "unknown"}
