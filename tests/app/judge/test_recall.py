"""Recall, number for number as a reference counts it that is written as papers' code is: image by image, with sets."""

from __future__ import annotations

import random
from collections import defaultdict
from statistics import mean

import pytest

from app.judge.recall import KS, Recall, ranks_of

Triple = tuple[int, int, str]


def reference(images: list[tuple[set[Triple], list[tuple[float, Triple]]]], k: int) -> tuple[float, float, float]:
    """R@K, mR@K, F1@K of (truth, predictions) of each image."""
    recalls, by_predicate = [], defaultdict(list)
    for truth, predictions in images:
        if not truth:
            continue
        best = {triple for _, triple in sorted(predictions, key=lambda each: -each[0])[:k]}
        recalls.append(len(truth & best) / len(truth))
        for predicate in {each[2] for each in truth}:
            those = {each for each in truth if each[2] == predicate}
            by_predicate[predicate].append(len(those & best) / len(those))
    recall, mean_recall = mean(recalls), mean(mean(shares) for shares in by_predicate.values())
    return recall, mean_recall, 2 * recall * mean_recall / (recall + mean_recall) if recall + mean_recall else 0.0


def drawn(seed: int) -> list[tuple[set[Triple], list[tuple[float, Triple]]]]:
    """Images with up to 160 predictions, some twice, some of equal score, and some images without truth."""
    rng = random.Random(seed)

    def triple() -> Triple:
        return rng.randrange(6), rng.randrange(6), rng.choice(["on", "near", "has", "under", "of"])

    return [
        (
            {triple() for _ in range(rng.randrange(12))},
            [(rng.choice([0.5, rng.random()]), triple()) for _ in range(rng.randrange(160))],
        )
        for _ in range(30)
    ]


@pytest.mark.parametrize("seed", range(8))
def test_figures_equal_the_references(seed: int) -> None:
    images, recall = drawn(seed), Recall()
    for truth, predictions in images:
        ranks = ranks_of(predictions)
        recall.add([(each[2], ranks.get(each)) for each in sorted(truth)])
    figures = recall.figures()
    for k in KS:
        found = [figures[f"{name}@{k}"] for name in ("R", "mR", "F1")]
        assert found == pytest.approx(reference(images, k), abs=1e-12)
    assert figures["R@20"] > 0


def test_one_predicate_a_pair_is_recall_over_each_pairs_best() -> None:
    predictions: list[tuple[float, tuple[int, int, str]]] = [
        (0.5, (1, 2, "on")), (0.9, (1, 2, "near")), (0.7, (2, 1, "under")), (0.6, (1, 2, "has")),
    ]  # fmt: skip
    assert ranks_of(predictions, one_a_pair=True) == {(1, 2, "near"): 1, (2, 1, "under"): 2}
    assert ranks_of(predictions)[1, 2, "on"] == 4


def test_an_image_without_truth_does_not_count() -> None:
    recall = Recall()
    recall.add([])
    assert recall.figures() == {}
    recall.add([("on", 21)])
    assert recall.figures()["R@20"] == 0
    assert recall.figures()["R@50"] == recall.figures()["mR@100"] == 1
