"""What a worker's log calls a pair, and says of a message that asks for nothing."""

from __future__ import annotations

import logging

from app.database.claim_rows import Claim, ClaimStatus, Message

log = logging.getLogger(__name__)


def named(claim: Claim) -> str:
    """A pair as an operator finds it again, in logs and in the inputs."""
    try:
        image = str(claim.pair.image_id)
    except (KeyError, TypeError, ValueError):  # what is stored is no pair, and that is why it fails
        image = "unknown"
    return f"run {claim.run.name}, image {image}, pair {claim.pair_id}"


def explain(status: ClaimStatus, message: Message) -> None:
    """Say why a message is dropped."""
    if status is ClaimStatus.UNKNOWN:
        log.warning("dropped a stale message, of a run or model that is not here: run %s, pair %d", *message)
    elif status is ClaimStatus.HELD:
        log.info("dropped a duplicate message: run %s, pair %d is claimed by another worker", *message)
    elif status is ClaimStatus.INACTIVE:
        log.info("dropped a message of a paused or cancelled run: run %s, pair %d", *message)
