"""What the commands share: settings from options, one line for an expected error, logging."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import click
from sqlalchemy.exc import DBAPIError

from app.errors import FarmError, printable
from app.queue.client import BROKER_AWAY, explain
from app.settings import DTYPES, ENGINES, LOG_FORMATS, LOG_LEVELS, Settings, is_text, load_settings

_CONFIG = "app.commands.config"  # in a context's meta, which its sub-commands share

Command = TypeVar("Command", bound=Callable[..., Any])

_MOST = 2**31 - 1


def say(text: object = "", *, err: bool = False) -> None:
    """Print for a person: what comes from data cannot steer the terminal."""
    click.echo("\n".join(map(printable, str(text).split("\n"))), err=err)


class FarmCommand(click.Command):
    """A command with ``-h`` and ``--version``, whose errors are as harmless to a terminal as what it says."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        options["context_settings"] = {"help_option_names": ["-h", "--help"]} | (options.get("context_settings") or {})
        super().__init__(*arguments, **options)
        self.params.append(
            click.Option(
                ["--version"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_show_version,
                help="Show the version and exit.",
            )
        )

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """As click says."""
        with _harmless():
            return super().make_context(*args, **extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click says; what is no text, no database and no JSON could hold."""
        rest = super().parse_args(ctx, args)
        for option in self.params:
            given = ctx.params.get(str(option.name))
            if not all(is_text(str(each)) for each in (given if isinstance(given, tuple) else (given,))):
                raise click.BadParameter("it holds bytes that are not UTF-8.", ctx, option)
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        """As click says."""
        with _harmless():
            return super().invoke(ctx)


@contextmanager
def _harmless() -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        message = "\n".join(map(printable, error.message.split("\n")))
        object.__setattr__(error, "message", message)  # click declares it final
        raise


class FarmGroup(FarmCommand, click.Group):
    """A group of such commands."""

    command_class = FarmCommand
    group_class = type


def _show_version(context: click.Context, _option: click.Parameter, given: bool) -> None:
    if given and not context.resilient_parsing:
        say(f"relation-farm {software_version()}")
        context.exit()


@cache
def software_version() -> str:
    """The installed package's version, or that there is none."""
    try:
        return version("relation-farm")
    except PackageNotFoundError:
        return "of a checkout that is not installed"


class WholeNumber(click.IntRange):
    """A whole number in a range that every database has a column for: 32 bits."""

    def __init__(self, min: int | None = None, max: int | None = None) -> None:
        """As click says."""
        super().__init__(-_MOST, _MOST) if min is None and max is None else super().__init__(min, max)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """As click says."""
        number = int(super().convert(value, param, ctx))
        if abs(number) > _MOST:
            self.fail(f"{value} is beyond {_MOST}.", param, ctx)
        return number


class FiniteFloat(click.FloatRange):
    """A number in a range that clocks and engines can count with; click itself takes ``nan`` and ``inf`` for one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """As click says."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        if abs(number) > _MOST:
            self.fail(f"{value} is beyond {_MOST}.", param, ctx)
        return number


config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    show_default="farm.toml in this folder, if there is one",
    expose_value=False,
    callback=lambda context, _option, path: context.meta.__setitem__(_CONFIG, path),
    help="TOML file of settings, by their names in small letters; options and variables go before it.",
)
_state_dir_option = click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    show_default=".farm",
    help="Folder of the embedded broker and the SQLite file, used where no REDIS_URL or DATABASE_URL is set.",
)


def state_dir_option(command: Command) -> Command:
    """Add the options that say where everything else is: the state folder, and the file of settings."""
    return _with(command, (_state_dir_option, config_option))


run_option = click.option(
    "--run", "run_name", show_default="the only run", help="Name of the run; needed only where there are several."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line, instead of text.")

_LOG_OPTIONS = (
    click.option(
        "--log-format",
        type=click.Choice(LOG_FORMATS),
        show_default="text",
        help="Form of the log lines: text for people, json for programs, one object a line.",
    ),
    click.option(
        "--log-level",
        type=click.Choice(LOG_LEVELS, case_sensitive=False),
        show_default="INFO of workers, WARNING of producers",
        help="Least severe level that is logged.",
    ),
)

_WORKER_OPTIONS = (
    click.option(
        "--workers-per-gpu",
        default=1,
        show_default=True,
        type=WholeNumber(min=1),
        help="Worker processes that share one GPU, or the CPU.",
    ),
    click.option(
        "--gpus-per-worker",
        type=WholeNumber(min=1),
        show_default="1",
        help="GPUs that one worker's model is spread over, by vLLM; for models larger than one GPU.",
    ),
    click.option(
        "--batch-size",
        type=WholeNumber(min=1),
        show_default="as many as memory allows",
        help="Generations that one worker decodes together at most.",
    ),
    click.option(
        "--engine", type=click.Choice(ENGINES), show_default="auto", help="Engine that generates the descriptions."
    ),
    click.option(
        "--api-key-env",
        metavar="NAME",
        show_default="no key",
        help="NAME of the environment variable that holds the key of the server at --base-url.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(DTYPES),
        show_default="bfloat16 on a GPU, float32 on a CPU",
        help="Type of the model's weights.",
    ),
)
_MODEL_OPTIONS = (
    click.option("--model-path", show_default="small", help="Model: small (it comes along), a folder, or a hub name."),
    click.option(
        "--model-revision",
        show_default="the hub's default branch",
        help="Branch, tag or commit of a model of the hub.",
    ),
    click.option(
        "--base-url",
        metavar="URL",
        show_default="no server",
        help="Address of an OpenAI-compatible chat server that has the model, like http://host:8000/v1.",
    ),
)


def model_options(command: Command) -> Command:
    """Add the options that name a model."""
    return _with(command, _MODEL_OPTIONS)


def worker_options(command: Command) -> Command:
    """Add the options that say how workers run, shared by ``producer run`` and ``workers up``."""
    return _with(command, _WORKER_OPTIONS)


def log_options(command: Command) -> Command:
    """Add the options that say what is logged, and how."""
    return _with(command, _LOG_OPTIONS)


def _with(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def handle_errors(command: Command) -> Command:
    """Turn errors that a user can mend into one line and exit status 1."""

    @wraps(command)
    def run(*args: Any, **options: Any) -> Any:
        try:
            return command(*args, **options)
        except FarmError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            raise click.ClickException(f"{error.filename or 'the system'}: {error.strerror or error}") from error
        except BROKER_AWAY as error:
            raise click.ClickException(f"the broker cannot be used: {explain(error)}") from error
        except DBAPIError as error:
            raise click.ClickException(f"the database does not take this: {_first_line(error.orig)}") from error

    return run  # type: ignore[return-value]


def settings_from(**given: Any) -> Settings:
    """The settings of environment and file with a command's options on top. Raises SettingsError."""
    context = click.get_current_context(silent=True)
    return load_settings(context.meta.get(_CONFIG) if context else None, **given)


def table(rows: Sequence[tuple[str, object]]) -> str:
    """Two columns of text."""
    shown = [(printable(name), printable(str(value))) for name, value in rows]
    width = max((len(name) for name, _ in shown), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in shown)


def columns(rows: Sequence[Sequence[object]]) -> str:
    """Rows of equally many values as aligned text."""
    shown = [[printable(str(value)) for value in row] for row in rows]
    widths = [max(len(row[at]) for row in shown) for at in range(len(shown[0]))]
    lines = ("  ".join(f"{value:<{width}}" for value, width in zip(row, widths, strict=True)) for row in shown)
    return "\n".join(line.rstrip() for line in lines)


_UNITS = (("day", 86_400), ("hour", 3_600), ("minute", 60))


def in_words(seconds: float | None) -> str:
    """A time that is left, as a person says it."""
    if seconds is None:
        return "time left unknown"
    if seconds <= 0:
        return "nothing left"
    for unit, length in _UNITS:
        if seconds >= 1.5 * length or (unit == "minute" and seconds >= 45):
            count = round(seconds / length)
            return f"about {count} {unit}{'s' * (count > 1)} left"
    return "less than a minute left"


def _first_line(error: object) -> str:
    return str(error).strip().split("\n")[0]
