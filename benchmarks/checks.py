"""How often the checks of descriptions are right: precision and recall of each flag over planted texts.

    python -m benchmarks.checks [--number 3000] [--seed 1] [--json]

The texts are drawn by a seed from phrases that the rules were not written on (``planted_phrases``); what is wrong with
each is known, because it was put there. No model takes part.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import click

from app.judge.flags import NAMES
from app.judge.text_check import flags_of
from app.judge.wording import LANGUAGES
from benchmarks.planted_texts import Planted, planted


def measured(number: int, seed: int) -> dict[str, Any]:
    """Precision and recall by language and flag; and the texts that were judged wrongly, for whoever mends a rule."""
    counts: Counter[tuple[str, str, str]] = Counter()
    mistakes: list[tuple[str, str, Planted]] = []
    for each in planted(number, seed):
        found = flags_of(each.text, each.finish_reason, each.scene, each.language)
        for name, flag in NAMES.items():
            if flag & each.unsaid:
                continue
            outcome = _outcome(bool(found & flag), bool(each.faults & flag))
            counts[each.language, name, outcome] += 1
            if outcome in ("false alarm", "missed"):
                mistakes.append((name, outcome, each))
    table = {language: {name: _row(counts, language, name) for name in NAMES} for language in LANGUAGES}
    return {"texts": 2 * number, "seed": seed, "flags": table, "mistakes": mistakes}


def _outcome(found: bool, is_there: bool) -> str:
    return {(True, True): "found", (True, False): "false alarm", (False, True): "missed", (False, False): "well"}[
        found, is_there
    ]


def _row(counts: Counter[tuple[str, str, str]], language: str, name: str) -> dict[str, float | int]:
    found, alarms, missed = (counts[language, name, outcome] for outcome in ("found", "false alarm", "missed"))
    return {
        "planted": found + missed,
        "precision": found / (found + alarms) if found + alarms else 0.0,
        "recall": found / (found + missed) if found + missed else 0.0,
    }


@click.command()
@click.option("--number", default=3_000, show_default=True, help="Texts in each language.")
@click.option("--seed", default=1, show_default=True, help="Another seed draws other texts.")
@click.option("--show", is_flag=True, help="Print the texts that are judged wrongly.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(number: int, seed: int, show: bool, as_json: bool) -> None:
    """Print precision and recall of each flag.

    Example: python -m benchmarks.checks --seed 7
    """
    found = measured(number, seed)
    mistakes = found.pop("mistakes")
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(f"{found['texts']:,} planted texts, seed {seed}")
    click.echo("\n".join(_lines(found["flags"])))
    for name, outcome, each in {(m[0], m[1], m[2].text): m for m in mistakes}.values() if show else ():
        click.echo(f"{name}: {outcome}: {each.language}: {each.place}: {each.text!r}")


def _lines(table: dict[str, dict[str, dict[str, float]]]) -> Iterator[str]:
    yield f"{'language':<9} {'flag':<18} {'planted':>7} {'precision':>9} {'recall':>7}"
    for language, rows in table.items():
        for name, row in rows.items():
            yield f"{language:<9} {name:<18} {row['planted']:>7} {row['precision']:>9.3f} {row['recall']:>7.3f}"


if __name__ == "__main__":
    main()
