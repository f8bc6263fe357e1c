"""``producer check``: flags of each description, and the recall of a run's candidates, computed and stored."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine

from app.boxes import parse_box
from app.database import check_rows
from app.database.check_rows import Checked, CheckedText, UncheckedPair
from app.database.connection import reading
from app.database.records import Run
from app.database.run_rows import find_run
from app.database.truth_rows import JudgedImage, has_relations, judged_images
from app.inputs.truth import canonical_predicate, identity_ends, object_ends
from app.judge.claims import Box
from app.judge.flags import RULES
from app.judge.recall import Recall, Triplet, ranks_of
from app.judge.text_check import Scene, flags_of
from app.judge.wording import LANGUAGES, Language, language_of
from app.pair import Pair
from producer.progress import Progress

PAIRS_A_BATCH = 500
"""Checked and stored together: as much is done twice after a kill, at most."""

_ORDERS = ("kept", "verified", "mixed")


@dataclass(frozen=True)
class CheckedRun:
    """What a check did."""

    run: str
    pairs: int  # checked now; the others were before
    texts: int
    figures_renewed: bool
    language: str  # zh, en, or any


def check(database: Engine, run_name: str | None, language: str | None, progress: Progress) -> CheckedRun:
    """Check a run's descriptions that are new, changed, or were checked by other rules; renew its recall.

    ``language`` is what they ought to be in: one of ``LANGUAGES``, "any", or None for that of the run's prompt. May be
    ended and started again at any time. Raises RunError.
    """
    with reading(database) as connection:
        run = find_run(connection, run_name)
    wanted = language or prompt_language(run)
    rules = f"{RULES}:{wanted}"
    with reading(database) as connection:
        total = check_rows.count_unchecked(connection, run, rules)
    checked = texts = 0
    with progress.phase("checking pairs", total) as advance:
        last = 0
        while True:
            with reading(database) as connection:
                some = check_rows.unchecked(connection, run, rules, last, PAIRS_A_BATCH)
            if not some:
                break
            last = some[-1].id
            found = {pair.id: _checked(pair, wanted) for pair in some}
            with database.begin() as connection:
                texts += check_rows.keep_checks(connection, run, rules, found)
            checked += len(some)
            advance(len(some))
    return CheckedRun(run.name, checked, texts, _renew_figures(database, run, progress), wanted)


def prompt_language(run: Run) -> Language:
    """The language of the run's prompt template, its placeholders and control tokens aside."""
    return language_of(re.sub(r"<\|[^|]*\|>|\{[^{}]*\}", " ", run.template["text"]))


def _checked(row: UncheckedPair, language: str) -> Checked:
    pair = Pair.from_json(row.payload)
    scene = Scene(pair.subject, pair.object, (_box(pair.subject_box), _box(pair.object_box)), pair.frame_size)
    wanted: Language | None = next((each for each in LANGUAGES if each == language), None)
    texts = [
        CheckedText(
            each.get("predicate"),
            int(flags_of(each["text"], each["finish_reason"], scene, wanted)),
            None if each.get("predicate") is None else each.get("verification"),
        )
        for each in row.descriptions
    ]
    return Checked(row.request, texts)


def _box(value: Any) -> Box:
    x1, y1, x2, y2 = parse_box(value)
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _renew_figures(database: Engine, run: Run, progress: Progress) -> bool:
    """Compute the run's recall anew, unless what it comes from is as it was."""
    with reading(database) as connection:
        basis = check_rows.basis_of(connection, run)
        known = check_rows.figures_of(connection, run)
        if known is not None and known[0] == basis:
            return False
        with progress.phase("counting recall by image", None) as advance:
            figures = _figures(connection, run, advance)
    with database.begin() as connection:
        if find_run(connection, run.name).uuid == run.uuid:
            check_rows.keep_figures(connection, run, basis, figures)
    return True


def _figures(connection: Connection, run: Run, advance: Any) -> dict[str, Any]:
    """Recall of stage 1 as it came, and of what is kept of it in each order; docs/judging.md says what is what."""
    stated = has_relations(connection, run)
    counted = _Counted()
    for image in judged_images(connection, run):
        scores = check_rows.verifications(connection, [pair_id for pair_id, _ in image.pairs])
        counted.add(image, stated, scores)
        advance(1)
    return {"truth": ("relations" if stated else "gt_predicates") if counted.any else None, **counted.report()}


class _Counted:
    """Everything that is counted, image by image; with one predicate a pair and with all of them."""

    def __init__(self) -> None:
        self._all = {name: Recall() for name in ("stage1", *_ORDERS)}
        self._best = {name: Recall() for name in ("stage1", *_ORDERS)}
        self._lost = {"cut": Recall(), "dropped": Recall()}
        self._fates = {"kept": 0, "cut": 0, "dropped": 0, "never proposed": 0}
        self._candidates = self._scored = 0

    @property
    def any(self) -> bool:
        """Whether any image has a true relation."""
        return self._all["stage1"].images > 0

    def add(self, image: JudgedImage, stated: bool, scores: dict[int, dict[int, float]]) -> None:
        """Count one image; ``stated``: its truth is the second input's, else the candidates' own."""
        truth = _merged(rows for said in image.truths for rows in ((said.relations if stated else said.proposed) or ()))
        for _, _, fate in truth.values():
            self._fates[fate or "never proposed"] += 1
        self._all["stage1"].add([(triplet[2], rank) for triplet, (rank, _, _) in truth.items()])
        self._best["stage1"].add([(triplet[2], rank) for triplet, (_, rank, _) in truth.items()])
        for name, recall in self._lost.items():
            recall.add([(triplet[2], rank if fate == name else None) for triplet, (rank, _, fate) in truth.items()])
        for name, predictions in self._orders(image, stated, scores).items():
            for recalls, one_a_pair in ((self._all, False), (self._best, True)):
                ranks = ranks_of(predictions, one_a_pair=one_a_pair)
                recalls[name].add([(triplet[2], ranks.get(triplet)) for triplet in truth])

    def report(self) -> dict[str, Any]:
        """As JSON holds it; an order without any score is None."""
        scored = {"stage1": True, "kept": True, "verified": self._scored > 0, "mixed": self._scored > 0}
        return {
            "images": self._all["stage1"].images,
            "triplets": self._all["stage1"].triplets,
            "candidates": self._candidates,
            "candidates_scored": self._scored,
            **{name: recall.report() if scored[name] else None for name, recall in self._all.items()},
            "one_predicate_a_pair": {
                name: recall.report() if scored[name] else None for name, recall in self._best.items()
            },
            "lost": {
                name: {each: share for each, share in recall.figures().items() if each.startswith("R@")}
                for name, recall in self._lost.items()
            },
            "triplets_by_fate": self._fates,
        }

    def _orders(
        self, image: JudgedImage, stated: bool, scores: dict[int, dict[int, float]]
    ) -> dict[str, list[tuple[float, Triplet]]]:
        """The image's kept candidates with the score of each order; what was not scored comes last."""
        orders: dict[str, list[tuple[float, Triplet]]] = {name: [] for name in _ORDERS}
        best_first = sorted(
            (
                (candidate, scores.get(pair_id, {}).get(position), ends)
                for pair_id, pair in image.pairs
                for ends in [object_ends(pair) if stated else identity_ends(pair)]
                for position, candidate in enumerate(pair.candidates)
            ),
            key=lambda each: -each[0].similarity,
        )
        for candidate, score, ends in best_first:
            triplet = (*ends, canonical_predicate(candidate.predicate))
            verified = float("-inf") if score is None else score
            self._candidates += 1
            self._scored += score is not None
            orders["kept"].append((candidate.similarity, triplet))
            orders["verified"].append((verified, triplet))
            orders["mixed"].append(((candidate.similarity + verified) / 2, triplet))
        return orders


def _merged(relations: Iterable[list[Any]]) -> dict[Triplet, tuple[int | None, int | None, str | None]]:
    """Each true triplet once; where several sources have one, as the source says that ranks it best."""
    truth: dict[Triplet, tuple[int | None, int | None, str | None]] = {}
    for subject, object_, predicate, rank, best_rank, fate in relations:
        triplet = subject, object_, predicate
        known = truth.get(triplet, (None, None, None))
        if triplet not in truth or (rank is not None and (known[0] is None or rank < known[0])):
            truth[triplet] = rank, best_rank, fate
    return truth
