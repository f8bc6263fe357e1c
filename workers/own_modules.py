"""A module of our names that is not ours, found before it is executed."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import click

from workers.exit_codes import EXIT_CANNOT_START

_OURS = Path(__file__).resolve().parents[1]


def refuse_foreign_modules() -> None:
    """End with one line where ``app``, ``producer`` or ``workers`` would come from elsewhere than this package.

    Celery looks for ``-A workers`` with the current folder first on the path: a file ``app.py`` that lies there
    would be executed in place of our package.
    """
    for name in ("app", "producer", "workers"):
        found = find_spec(name)
        if found is None or found.origin is None:  # not installed here, or a folder without __init__.py
            continue
        place = Path(found.origin).resolve()
        if place != _OURS / name / "__init__.py":
            click.echo(
                f"Error: {place} stands in place of {_OURS / name}: rename it, or start from another folder", err=True
            )
            sys.exit(EXIT_CANNOT_START)
