"""What the commands share: settings from options, one line for an expected error, logging."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click
from sqlalchemy.exc import DBAPIError

from app.errors import FarmError
from app.queue.publisher import BROKER_AWAY
from app.settings import Settings, load_settings

Command = TypeVar("Command", bound=Callable[..., Any])


state_dir_option = click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the embedded broker and SQLite live, if no REDIS_URL or DATABASE_URL is given.  [default: .farm]",
)
run_option = click.option("--run", "run_name", help="The run's name; needed only where there are several.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


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
            raise click.ClickException(f"the broker does not answer: {_first_line(error)}") from error
        except DBAPIError as error:
            raise click.ClickException(f"the database does not take this: {_first_line(error.orig)}") from error

    return run  # type: ignore[return-value]


def settings_from(**given: Any) -> Settings:
    """The environment's settings with a command's options on top. Raises SettingsError."""
    return load_settings(**given)


def set_up_logging(verbose: bool = False) -> None:
    """Log lines go to standard error; standard output is for results."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)


def table(rows: Sequence[tuple[str, object]]) -> str:
    """Two columns of text."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def columns(rows: Sequence[Sequence[object]]) -> str:
    """Rows of equally many values as aligned text."""
    widths = [max(len(str(row[at])) for row in rows) for at in range(len(rows[0]))]
    lines = ("  ".join(f"{value!s:<{width}}" for value, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _first_line(error: object) -> str:
    return str(error).strip().split("\n")[0]
