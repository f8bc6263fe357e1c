"""One tree of errors. What derives from ``FarmError`` is expected: a command shows its message as one line."""

from __future__ import annotations

import unicodedata
from enum import StrEnum


class FarmError(Exception):
    """Something that a user or an operator can mend; the message says what, where, and with which value."""


class SettingsError(FarmError, ValueError):
    """A setting is unknown or does not hold; the message names the variable."""


class SchemaError(FarmError):
    """The database has tables that this version does not know."""


class SchemaPending(SchemaError):
    """The database has no tables yet, or those of an older version; ``producer migrate`` mends that."""


class InputError(FarmError):
    """A file that is wrong as a whole; nothing of it may be used. Says which file, where and what."""

    def __init__(self, file: str, key: str, value: object, what: str) -> None:
        """``key`` is the place in the file (a key, or a line and byte), ``value`` what stands there."""
        self.file, self.key, self.value, self.what = file, key, value, what
        shown = "" if value is None else f": {shorten(value)}"
        super().__init__(f"{file}: {key}: {what}{shown}")


class TemplateError(FarmError, ValueError):
    """A prompt template cannot be used; says which file and what is wrong with it."""


class ModelMissing(FarmError):
    """A model folder is not there."""


class RunError(FarmError):
    """There is no such run, several to choose from, or one with other settings; the message says which."""


class EnqueueError(FarmError):
    """Nothing was enqueued, though the files could be read; the message says why."""


class StateError(FarmError, RuntimeError):
    """A folder or file of the state cannot be trusted; the message says which and why."""


class BrokerError(FarmError, RuntimeError):
    """The embedded server cannot be had."""


class ExportError(FarmError):
    """The export cannot be written; the message says why."""


class WorkersError(FarmError, RuntimeError):
    """A slot's worker cannot live."""


class FailureReason(StrEnum):
    """Why a pair failed: the closed list, as rows hold it and docs/reasons.md prints it.

    ``outside``: no fault of the pair's own, so every repeat of an enqueue tries it once more. ``advice`` is for people.
    """

    outside: bool
    advice: str

    def __new__(cls, text: str, outside: bool, advice: str) -> FailureReason:
        reason = str.__new__(cls, text)
        reason._value_, reason.outside, reason.advice = text, outside, advice
        return reason

    IMAGE_MISSING = (
        "image missing",
        True,
        "The file is not there, others of its folder are. Put it back; the next enqueue tries again.",
    )
    IMAGES_AWAY = (
        "images are away",
        True,
        "The folder was missing or empty, did not answer, or held none of the run's images, for longer than "
        "FARM_WAIT_IMAGES_S. Mount it, or mend --image-root; the next enqueue tries again.",
    )
    IMAGE_HANGS = (
        "image does not answer",
        True,
        "A read of the file did not return within FARM_IMAGE_READ_S, while others of its folder can be looked at. See "
        "to its disk or share; the next enqueue tries again.",
    )
    IMAGE_UNREADABLE = (
        "image unreadable",
        False,
        "The file is no image that is opened (docs/operating.md), or damaged. Mend it: a changed file is "
        "tried again by the next enqueue.",
    )
    IMAGE_TOO_LARGE = (
        "image too large",
        False,
        "More pixels than FARM_MAX_IMAGE_PIXELS. Raise it, or scale the image down.",
    )
    IMAGE_OUTSIDE = (
        "image path leaves the root",
        False,
        "The path, or a link on its way, leads out of the image root. Use --image-root or --image-prefix.",
    )
    BOX_OUTSIDE = (
        "bounding box outside the image",
        False,
        "The box shares nothing with the image that the worker saw. Mend the second input and enqueue with --update.",
    )
    TEMPLATE_UNUSABLE = "prompt template unusable", False, "The stored template cannot be parsed by this version."
    PROMPT_TOO_LONG = (
        "prompt too long",
        False,
        "Prompt and longest answer exceed the model's context. Lower --max-new-tokens or --max-pixels in another run.",
    )
    PROMPT_FAILED = (
        "prompt cannot be made",
        False,
        "An unexpected error while the prompt was made; the worker's log has it whole.",
    )
    CONTROL_TOKEN = (
        "control token in a name",
        False,
        "A name spells a control token, which a chat server would take for one. Use an engine of our own for it.",
    )
    MODEL_ERROR = (
        "model error",
        False,
        "The engine failed FARM_MAX_ATTEMPTS times; the worker's log has the error whole.",
    )
    NOT_FINITE = (
        "model gives no numbers",
        True,
        "The logits hold NaN or infinity: damaged weights, or a type too narrow (float16). Mend the model's files, or "
        "use --dtype bfloat16; the next enqueue tries again.",
    )
    SAMPLING_UNKNOWN = (
        "sampling not supported",
        True,
        "The worker's engine has no such way of sampling; the detail names it. Use another engine or server; the next "
        "enqueue tries again.",
    )
    KILLS_WORKER = (
        "kills its worker",
        False,
        "Its worker died each time while it ran alone. Look at the image; then `producer retry`.",
    )
    NOT_STORABLE = "result cannot be stored", False, "The database refuses the data itself."


class PairError(FarmError):
    """A pair cannot be described, through no fault of the engine; ``reason`` is one of a few, for grouping."""

    def __init__(self, reason: FailureReason, detail: str) -> None:
        """``detail`` holds the particulars."""
        super().__init__(detail)
        self.reason = reason


class ImageError(PairError):
    """An image that cannot be used."""


class PromptError(PairError):
    """No prompt can be made of a pair."""


def printable(text: str) -> str:
    """A text as one line that no terminal takes for a command and no log for two lines: controls become escapes.

    Marks that reorder what is read (of two directions) are escaped, too; joiners, which many scripts need, stay.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or _is_harmless(each) else _escaped(each) for each in text)


def _is_harmless(character: str) -> bool:
    return character in "\u200c\u200d" or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def shorten(value: object, limit: int = 80) -> str:
    """A value as one printable line for an error or an example, cut where it is long."""
    if isinstance(value, str | list | tuple) and len(value) > limit:
        value = value[:limit]  # repr() of a whole file's worth of data would be slow before it is cut
    try:
        text = repr(value)
    except RecursionError:
        text = f"<{type(value).__name__} nested too deeply>"
    return text if len(text) <= limit else text[: limit - 3] + "..."
