"""What the last check found of a run, read back: flags by predicate and class, and recall."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Connection

from app.commands import (
    FarmCommand,
    columns,
    handle_errors,
    json_option,
    run_option,
    say,
    settings_from,
    state_dir_option,
)
from app.database import check_rows
from app.database.connection import open_to_read, reading
from app.database.records import Run
from app.database.run_rows import find_run
from app.judge.flags import MEANINGS, NAMES, RULES, names_of
from app.judge.recall import KS

_SHOWN = 20
"""Predicates and classes that are shown as text; JSON has all."""


@click.command("check", cls=FarmCommand)
@json_option
@run_option
@state_dir_option
@handle_errors
def check_command(as_json: bool, run_name: str | None, state_dir: Path | None) -> None:
    """Show what `producer check` found of a run: flags of its descriptions, recall of its candidates.

    Example: results check --json
    """
    with reading(open_to_read(settings_from(state_dir=state_dir))) as connection:
        found = checks_of(connection, find_run(connection, run_name))
    say(json.dumps(found) if as_json else described(found))


def checks_of(connection: Connection, run: Run) -> dict[str, Any]:
    """All of it, as ``results check --json`` prints it."""
    rules = check_rows.rules_of(connection, run)
    predicates = _sums(check_rows.counts_by_predicate(connection, run))
    classes = _sums(check_rows.counts_by_class(connection, run))
    total: Counter[str] = Counter()
    for counted in predicates.values():
        total.update(counted)
    figures = check_rows.figures_of(connection, run)
    return {
        "run": run.name,
        "language": rules.partition(":")[2] if rules else None,
        "texts": total["texts"],
        "unchecked_pairs": check_rows.count_unchecked(connection, run, rules or ""),
        "older_rules": rules is not None and rules.partition(":")[0] != str(RULES),
        "flags": _flags(total),
        "predicates": {name: _row(counted) for name, counted in predicates.items()},
        "classes": {name: _row(counted) for name, counted in classes.items()},
        "recall": None if figures is None else figures[1],
        "recall_is_old": figures is not None and figures[0] != check_rows.basis_of(connection, run),
    }


def described(found: dict[str, Any]) -> str:
    """The same for a person."""
    return "\n".join(_lines(found))


def _sums(rows: Iterable[tuple[Any, ...]]) -> dict[str, Counter[str]]:
    """Name -> how many texts there are, and how many of them have each flag; most texts first."""
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    for name, flags, number in rows:
        counted = sums["" if name is None else name]
        counted["texts"] += number
        for flag in names_of(flags):
            counted[flag] += number
    return dict(sorted(sums.items(), key=lambda each: (-each[1]["texts"], each[0])))


def _flags(counted: Counter[str]) -> dict[str, int]:
    unnamed = counted["names_one"] + counted["names_neither"] + counted["empty"]
    return {**{name: counted[name] for name in NAMES}, "names_both": counted["texts"] - unnamed}


def _row(counted: Counter[str]) -> dict[str, Any]:
    return {"texts": counted["texts"], **_flags(counted)}


def _lines(found: dict[str, Any]) -> Iterator[str]:
    wanted = f", which ought to be in {found['language']}" if found["language"] in ("zh", "en") else ""
    yield f"run {found['run']}: {found['texts']:,} texts are checked{wanted}"
    if found["unchecked_pairs"]:
        yield f"{found['unchecked_pairs']:,} described pairs are not checked yet: producer check"
    if found["older_rules"]:
        yield "these are an older version's rules: producer check"
    if found["texts"]:
        rows = [
            (name, f"{found['flags'][name]:,}", _percent(found["flags"][name], found["texts"]), MEANINGS[flag])
            for name, flag in NAMES.items()
        ]
        yield from ("", columns([("FLAG", "TEXTS", "SHARE", "THE TEXT"), *rows]))
        yield from _shares("PREDICATE", found["predicates"])
        yield from _shares("CLASS", found["classes"])
    yield from _recall(found)


def _shares(head: str, counted: dict[str, dict[str, int]]) -> Iterator[str]:
    heads = (head, "TEXTS", *(name.upper().replace("_", " ") for name in NAMES))
    rows = [
        (name or "(the pair)", f"{row['texts']:,}", *(_percent(row[flag], row["texts"]) for flag in NAMES))
        for name, row in list(counted.items())[:_SHOWN]
    ]
    yield from ("", columns([heads, *rows]))
    if len(counted) > _SHOWN:
        yield f"and {len(counted) - _SHOWN:,} more (--json has all)"


def _recall(found: dict[str, Any]) -> Iterator[str]:
    figures = found["recall"]
    yield ""
    if figures is None:
        yield "recall is not counted yet: producer check"
        return
    if figures["truth"] is None:
        yield "recall: the inputs say of no image which relations hold (runs of an older version: enqueue them again)"
        return
    truth = {
        "relations": "the second input's relations",
        "gt_predicates": "the candidates' own gt_predicates: what stage 1 did not propose is not among them",
    }[figures["truth"]]
    yield f"recall over {figures['images']:,} images with {figures['triplets']:,} true relations; truth: {truth}"
    if found["recall_is_old"]:
        yield "inputs or scores have changed since: producer check"
    yield from _orders("CANDIDATES", figures)
    yield from ("", *_orders("BEST OF EACH PAIR", figures["one_predicate_a_pair"]))
    rows = [(name, *(f"{shares[f'R@{k}']:.4f}" for k in KS)) for name, shares in figures["lost"].items()]
    yield from ("", columns([("RECALL LOST", *(f"R@{k}" for k in KS)), *rows]))
    yield "true relations: " + ", ".join(f"{number:,} {fate}" for fate, number in figures["triplets_by_fate"].items())


def _orders(head: str, orders: dict[str, Any]) -> Iterator[str]:
    names = [f"{name}@{k}" for k in KS for name in ("R", "mR", "F1")]
    told = {
        "stage1": "as stage 1 has them",
        "kept": "kept",
        "verified": "kept, by verification",
        "mixed": "kept, mixed",
    }
    rows = [(text, *(f"{orders[key][name]:.4f}" for name in names)) for key, text in told.items() if orders[key]]
    yield columns([(head, *names), *rows])


def _percent(number: int, total: int) -> str:
    return f"{100 * number / total:.1f} %"
