"""Writes ``docs/settings.md``, ``docs/cli.md`` and ``docs/reasons.md`` from the code; with ``--check`` it compares.

python -m tools.reference
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import annotated_types
import click
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from app.errors import FailureReason
from app.inputs.drops import Reason
from app.results.cli import main as results
from app.settings import DEVICES, DTYPES, ENGINES, LOG_FORMATS, LOG_LEVELS, SHARD_LEASE_S, Settings, variable_of
from producer.cli import main as producer
from workers.cli import main as workers

DOCS = Path(__file__).parents[1] / "docs"
GENERATED = "<!-- Generated from the code by `make docs`: change the code, not this page. -->"
CHOICES = {
    "engine": ENGINES, "dtype": DTYPES, "device": DEVICES, "log_format": LOG_FORMATS, "log_level": LOG_LEVELS
}  # fmt: skip
WIDTH = 100


def pages() -> dict[Path, str]:
    """Each generated page and what belongs into it."""
    return {DOCS / "settings.md": settings_page(), DOCS / "cli.md": cli_page(), DOCS / "reasons.md": reasons_page()}


def reasons_page() -> str:
    """Why parts of the input are dropped and pairs fail: both closed lists."""
    dropped = [f"| {reason.value} | {reason.unit} |" for reason in Reason]
    failed = [f"| {each.value} | {'yes' if each.outside else 'no'} | {each.advice} |" for each in FailureReason]
    head = ["# Reasons", "", GENERATED, ""]
    drops = ["## Dropped", "", _DROPPED, "", "| Reason | Counts |", "| --- | --- |", *dropped, ""]
    columns = ["| Reason | Tried again by every enqueue | What to do |", "| --- | --- | --- |"]
    return "\n".join([*head, *drops, "## Failed", "", _FAILED, "", *columns, *failed, ""])


_DROPPED = """\
Parts of the input that no pair is made of, counted by `producer enqueue` and kept with the run (`results drops`, with
examples and their places)."""
_FAILED = """\
Pairs that a worker could not describe (`results failures`). Failures of outside reasons are tried again once by every
repeat of `producer enqueue` or `producer run`; the others wait for `producer retry`, or for a changed input."""


def settings_page() -> str:
    """Every setting: its variable, default, bounds and meaning."""
    rows = [_row(name, field) for name, field in Settings.model_fields.items()]
    return "\n".join(["# Settings", "", GENERATED, "", _INTRODUCTION, "", *_HEAD, *rows, "", _TOGETHER, ""])


_HEAD = ("| Variable | Default | Allowed | Meaning |", "| --- | --- | --- | --- |")
_INTRODUCTION = """\
An option of a command goes before its variable in the environment, and that before the TOML file: the one that
`--config` names, else `FARM_CONFIG`, else `farm.toml` in the current folder if there is one. The file's keys are the
variables' names without `FARM_` in small letters (`redis_url`, `model`, `lease_s = 30`); workers get all of it from who
starts them. Keep a file with passwords to its owner (`chmod 600`).

Read from the environment by every command and worker, and checked together: a value that does not hold, alone or
alongside another, is refused in one line with the variables and their values. An unknown variable that begins with
`FARM_` is refused, an empty one counts as not set. Names that end in
`_S` are seconds."""
_TOGETHER = f"""\
Together: `FARM_REFRESH_S` at most half of `FARM_VISIBILITY_TIMEOUT_S` and of a shard lease ({SHARD_LEASE_S} s);
`FARM_SWEEP_S` at most `FARM_VISIBILITY_TIMEOUT_S` and twice `FARM_LEASE_S`. `workers up` refuses a
`FARM_MEMORY_FRACTION` that the workers of one GPU exceed together, `FARM_DEVICE=cuda:N` (it pins each worker to its
GPU) and `FARM_DEVICE=cuda` where no GPU is visible. `CELERY_BROKER_URL`, its read and write variants,
`CELERY_CONFIG_MODULE` and `CELERY_LOADER` are refused: Celery would put them before these settings."""


def _row(name: str, field: FieldInfo) -> str:
    default = field.get_default()
    shown = "" if default in (None, PydanticUndefined) else f"`{default}`"
    return f"| `{variable_of(name)}` | {shown} | {_allowed(name, field)} | {field.description} |"


def _allowed(name: str, field: FieldInfo) -> str:
    if name in CHOICES:
        return ", ".join(f"`{choice}`" for choice in CHOICES[name])
    least = most = above = ""
    for bound in field.metadata:
        if isinstance(bound, annotated_types.Ge):
            least = f"{bound.ge:,}"
        elif isinstance(bound, annotated_types.Gt):
            above = f"{bound.gt:,}"
        elif isinstance(bound, annotated_types.Le):
            most = f"{bound.le:,}"
    if above:
        return f"above {above}, at most {most}"
    if least and most:
        return f"{least} to {most}"
    return f"at least {least}" if least else ""


def cli_page() -> str:
    """The help of every command."""
    lines = ["# Commands", "", GENERATED, ""]
    lines += [
        "Exit status: 0 when something was done or nothing was to do; 1 when it could not be done, and with `--strict`",
        "when a pair is pending or failed; 2 for wrong use; 78 for a worker that cannot start. Reports go to standard",
        "output, progress and logs to standard error.",
    ]
    for name, command in _commands():
        lines += ["", f"## {name}", "", "```text", _help(name, command).rstrip(), "```"]
    return "\n".join([*lines, ""])


def _commands() -> Iterator[tuple[str, click.Command]]:
    pending: list[tuple[str, click.Command]] = [("producer", producer), ("results", results), ("workers", workers)]
    while pending:
        name, command = pending.pop(0)
        yield name, command
        if isinstance(command, click.Group):
            inner = [(f"{name} {part}", command.commands[part]) for part in sorted(command.commands)]
            pending = inner + pending


def _help(name: str, command: click.Command) -> str:
    given: dict[str, Any] = {"info_name": name, "max_content_width": WIDTH, "terminal_width": WIDTH, "color": False}
    with click.Context(command, help_option_names=["-h", "--help"], **given) as context:
        return command.get_help(context)


@click.command()
@click.option("--check", is_flag=True, help="Exit with status 1 if a page is stale, and write nothing.")
def main(check: bool) -> None:
    """Write the generated pages, or compare them with the code."""
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    if check and stale:
        raise click.ClickException(f"stale: {', '.join(path.name for path in stale)}; run `make docs`")
    for path in stale:
        path.write_text(pages()[path])
        click.echo(f"written: {path}")


if __name__ == "__main__":
    main()
