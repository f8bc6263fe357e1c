"""R@K, mR@K and F1@K, as scene-graph papers count them, over images that come one after another.

R@K (Lu et al., "Visual Relationship Detection with Language Priors", 2016): of an image's true triplets the share that
is among its K best predictions, averaged over images that have any. mR@K (Chen et al. 2019, Tang et al. 2019): the
same for each predicate alone, averaged over the images that have it, then over the predicates that occur. F1@K: the
harmonic mean of both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

KS = (20, 50, 100)

Triplet = tuple[Hashable, Hashable, str]
"""Subject, object, predicate; the first two in whatever form tells an image's objects apart."""


def ranks_of(predictions: Iterable[tuple[float, Triplet]], *, one_a_pair: bool = False) -> dict[Triplet, int]:
    """Each predicted triplet's best rank, from 1, by falling score; equal scores stay in their order.

    ``one_a_pair``: of each pair only its best prediction takes part (in papers "with graph constraint").
    """
    ranks: dict[Triplet, int] = {}
    pairs: set[tuple[Hashable, Hashable]] = set()
    rank = 0
    for _, triplet in sorted(predictions, key=lambda each: -each[0]):
        if one_a_pair and triplet[:2] in pairs:
            continue
        pairs.add(triplet[:2])
        rank += 1
        ranks.setdefault(triplet, rank)
    return ranks


@dataclass
class Recall:
    """Sums over images; what it holds grows with the number of predicates alone."""

    ks: Sequence[int] = KS
    images: int = 0
    triplets: int = 0
    _shares: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    _seen: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # predicate -> images that have it
    _by_predicate: dict[int, dict[str, float]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(float)))

    def add(self, truth: Sequence[tuple[str, int | None]]) -> None:
        """Count one image: each true triplet once, as its predicate and the rank at which it is predicted, if at all.

        An image without any is passed over.
        """
        if not truth:
            return
        self.images += 1
        self.triplets += len(truth)
        ranks: dict[str, list[int | None]] = defaultdict(list)
        for predicate, rank in truth:
            ranks[predicate].append(rank)
        for predicate in ranks:
            self._seen[predicate] += 1
        for k in self.ks:
            self._shares[k] += _share([rank for _, rank in truth], k)
            for predicate, those in ranks.items():
                self._by_predicate[k][predicate] += _share(those, k)

    def figures(self) -> dict[str, float]:
        """``R@K``, ``mR@K`` and ``F1@K`` for each K, as shares of 1; empty without any image."""
        found: dict[str, float] = {}
        for k in self.ks if self.images else ():
            recall = self._shares[k] / self.images
            mean = sum(self.of_predicates(k).values()) / len(self._seen)
            found[f"R@{k}"], found[f"mR@{k}"] = recall, mean
            found[f"F1@{k}"] = 2 * recall * mean / (recall + mean) if recall + mean else 0.0
        return found

    def of_predicates(self, k: int) -> dict[str, float]:
        """Each predicate's recall among the K best, averaged over the images that have it."""
        return {predicate: self._by_predicate[k][predicate] / number for predicate, number in self._seen.items()}

    def report(self) -> dict[str, Any]:
        """The figures, with R@K of each predicate under ``predicates``."""
        predicates: dict[str, dict[str, float]] = {
            predicate: {"images": number, **{f"R@{k}": self._by_predicate[k][predicate] / number for k in self.ks}}
            for predicate, number in sorted(self._seen.items())
        }
        return {**self.figures(), "predicates": predicates}


def _share(ranks: Sequence[int | None], k: int) -> float:
    return sum(rank is not None and rank <= k for rank in ranks) / len(ranks)
