"""What an engine says of a request, as the pair's failure; and when it is the model that is at fault, not the pairs."""

from __future__ import annotations

from app.errors import FailureReason
from workers.engine.api import ControlTokens, ImageUnreadable, LogitsNotFinite, PromptTooLong, SamplingUnknown

REASONS: dict[type[Exception], FailureReason] = {
    PromptTooLong: FailureReason.PROMPT_TOO_LONG,
    ControlTokens: FailureReason.CONTROL_TOKEN,
    ImageUnreadable: FailureReason.IMAGE_UNREADABLE,
    SamplingUnknown: FailureReason.SAMPLING_UNKNOWN,
    LogitsNotFinite: FailureReason.NOT_FINITE,
}
"""Of what an engine would say again however often it is asked: the pair's failure at once."""

HOPELESS_AFTER = 3  # pairs without numbers, while the process has had no text at all


class ModelHopeless(Exception):
    """Every text of this process's model failed for want of finite numbers."""


class ModelWatch:
    """Follows whether a process's model has given any text yet. Its threads share it: whole numbers need no lock here,
    for one pair more or less decides nothing.
    """

    def __init__(self) -> None:
        self._texts = self._failed_pairs = 0

    def text(self) -> None:
        """The model gave one."""
        self._texts += 1

    def pair_failed(self, error: Exception) -> None:
        """A pair has failed. Raises ModelHopeless where no text has had numbers, after ``HOPELESS_AFTER`` pairs."""
        if not isinstance(error, LogitsNotFinite):
            return
        self._failed_pairs += 1
        if not self._texts and self._failed_pairs >= HOPELESS_AFTER:
            raise ModelHopeless(f"{self._failed_pairs} pairs and no text: {error}") from error
