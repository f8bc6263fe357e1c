"""One tree of errors. What derives from ``FarmError`` is expected: a command shows its message as one line."""

from __future__ import annotations


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


class BrokerError(FarmError, RuntimeError):
    """The embedded server cannot be had."""


class ExportError(FarmError):
    """The export cannot be written; the message says why."""


class WorkersError(FarmError, RuntimeError):
    """A slot's worker cannot live."""


class PairError(FarmError):
    """A pair cannot be described, through no fault of the engine; ``reason`` is one of a few, for grouping."""

    def __init__(self, reason: str, detail: str) -> None:
        """``detail`` holds the particulars."""
        super().__init__(detail)
        self.reason = reason


class ImageError(PairError):
    """An image that cannot be used."""


class PromptError(PairError):
    """No prompt can be made of a pair."""


def shorten(value: object, limit: int = 80) -> str:
    """A value as one printable line for an error or an example, cut where it is long."""
    if isinstance(value, str | list | tuple) and len(value) > limit:
        value = value[:limit]  # repr() of a whole file's worth of data would be slow before it is cut
    try:
        text = repr(value)
    except RecursionError:
        text = f"<{type(value).__name__} nested too deeply>"
    return text if len(text) <= limit else text[: limit - 3] + "..."
