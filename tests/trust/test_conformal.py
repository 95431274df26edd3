"""Prediction sets contain the right class as often as they promise, and say so where they cannot."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from twinbud.core.errors import TwinbudError
from twinbud.trust.conformal import PredictionSets, fit_prediction_sets

CLASSES = ("a", "b", "c")


def examples(num_images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are overconfident, and labels."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(num_images, 3))
    labels = np.array([random.choice(3, p=row) for row in softmax(logits, axis=1)])
    return softmax(3 * logits, axis=1), labels


def fitted(
    probabilities: np.ndarray, labels: np.ndarray, *, groups: np.ndarray | None = None, coverage: float = 0.9,
    per_class: bool = False,
) -> PredictionSets:  # fmt: skip
    groups = np.arange(len(labels)) if groups is None else groups
    return fit_prediction_sets(probabilities, labels, groups, classes=CLASSES, coverage=coverage, per_class=per_class)


def covered(sets: PredictionSets, probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return sets.members(probabilities)[np.arange(len(labels)), labels]


@settings(max_examples=40, deadline=None)
@given(num_images=st.integers(10, 200), coverage=st.sampled_from([0.5, 0.8, 0.9]), seed=st.integers(0, 10_000))
def test_sets_hold_the_classes_whose_p_value_in_crepes_is_large(num_images: int, coverage: float, seed: int) -> None:
    crepes = pytest.importorskip("crepes")
    probabilities, labels = examples(num_images, seed)
    new, _ = examples(50, seed + 1)
    classifier = crepes.ConformalClassifier()
    classifier.fit(1 - probabilities[np.arange(num_images), labels])
    theirs = classifier.predict_p(1 - new, smoothing=False) > 1 - coverage + 1e-9
    theirs[np.arange(50), new.argmax(axis=1)] = True
    assert (fitted(probabilities, labels, coverage=coverage).members(new) == theirs).all()


@pytest.mark.parametrize("per_class", [False, True])
def test_the_mean_coverage_of_many_samplings_is_the_wanted_one(per_class: bool) -> None:
    rates: list[float] = []
    for seed in range(200):
        sets = fitted(*examples(100, seed), per_class=per_class)
        rates.append(float(covered(sets, *examples(200, seed + 1000)).mean()))
    assert 0.895 < np.mean(rates) < 0.93  # at least 0.9; the most probable class is always in the set


def test_each_class_is_covered_where_that_is_wanted() -> None:
    together, each = np.zeros(3), np.zeros(3)
    for seed in range(100):
        random = np.random.default_rng(seed)
        labels = random.choice(3, size=600, p=[0.7, 0.2, 0.1])
        probabilities = softmax(random.normal(size=(600, 3)) + np.eye(3)[labels] * np.array([4, 2, 1]), axis=1)
        train, test = slice(0, 300), slice(300, 600)
        for rates, per_class in ((together, False), (each, True)):
            sets = fitted(probabilities[train], labels[train], per_class=per_class)
            hit = covered(sets, probabilities[test], labels[test])
            rates += [hit[labels[test] == k].mean() / 100 for k in range(3)]
    assert together.min() < 0.85
    assert each.min() > 0.89


def test_a_patient_with_many_images_counts_once() -> None:
    groups = np.r_[np.zeros(20, dtype=int), np.arange(1, 21)]
    chosen = 1 - 0.05 * np.arange(21)  # the right class of image 0, and of the 20 other patients
    probabilities = np.full((40, 3), 0.0)
    labels = np.zeros(40, dtype=int)
    probabilities[:20, 0] = chosen[0]
    probabilities[20:, 0] = chosen[1:]
    threshold = fitted(probabilities, labels, groups=groups, coverage=0.9).thresholds["a"]
    # 21 patients: 0.9 · 22 = 19.8, so the 20th highest of the patients
    assert threshold == pytest.approx(chosen[19])


def test_coverage_holds_for_images_of_new_patients() -> None:
    rates: list[float] = []
    for seed in range(200):
        random = np.random.default_rng(seed)
        sizes = random.integers(1, 20, size=60)
        difficulty = np.repeat(random.normal(size=60) - 0.05 * sizes, sizes)
        groups = np.repeat(np.arange(60), sizes)
        right = 1 / (1 + np.exp(-difficulty - 0.3 * random.normal(size=len(groups))))
        probabilities = np.stack([right, 1 - right, np.zeros_like(right)], axis=1)
        labels = np.zeros(len(groups), dtype=int)
        known = groups < 40
        threshold = fitted(probabilities[known], labels[known], groups=groups[known]).thresholds["a"]
        one_each = [random.choice(np.flatnonzero(groups == patient)) for patient in range(40, 60)]
        rates.append(float((right[one_each] >= threshold).mean()))
    assert np.mean(rates) > 0.895


def test_a_set_is_never_empty() -> None:
    sets = PredictionSets(coverage=0.5, per_class=False, thresholds=dict.fromkeys(CLASSES, 0.9))
    assert sets.members(np.array([[0.4, 0.35, 0.25]])).tolist() == [[True, False, False]]


def test_a_coverage_that_so_few_images_cannot_ensure_is_refused_with_the_highest_possible() -> None:
    probabilities, labels = examples(8, 0)
    with pytest.raises(
        TwinbudError, match=r"8 patients or images cannot ensure a coverage of 0\.9\. Give at most 0\.888, or label"
    ):
        fitted(probabilities, labels)
    assert fitted(probabilities, labels, coverage=0.888).thresholds


def test_a_class_of_one_image_is_named() -> None:
    probabilities, labels = examples(60, 0)
    labels[:] = 0
    labels[7] = 2
    labels[8:30] = 1
    with pytest.raises(TwinbudError, match=r"1 patients or images of class 'c' cannot ensure a coverage of 0\.9"):
        fitted(probabilities, labels, per_class=True)
