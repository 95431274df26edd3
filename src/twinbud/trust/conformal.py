"""Prediction sets that contain the right class with a chosen probability: split conformal prediction.

A class is in the set of an image if its probability reaches a threshold, chosen on images that the network has not
learned from so that the right class of a new image reaches it with at least the chosen probability (the score
1 - p(label): Sadinle, Lei and Wasserman, JASA 2019). Where several images are of one patient, each patient counts once
(Lee, Barber and Willett, "Distribution-free inference with hierarchical data", 2023): coverage holds for a random image
of a new patient.

Images are out of fold: no model that gives a score has learned from that image, but there are several such models, and
the delivered one has learned from all. The guarantee of one model is then approximate; docs/trust.md has measurements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from twinbud.core.errors import TwinbudError

_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class PredictionSets:
    """How sets are made from probabilities.

    Attributes:
        coverage: The probability, in (0, 1), with which a set contains the right class.
        per_class: Whether this holds for the images of each class, not only on average.
        thresholds: For each class, the smallest probability, in [0, 1], with which it is in a set.

    Raises:
        ValueError: A value is outside its range.
    """

    coverage: float
    per_class: bool
    thresholds: Mapping[str, float]

    def __post_init__(self) -> None:
        if not 0 < self.coverage < 1:
            raise ValueError(f"coverage is {self.coverage:g}, not between 0 and 1")
        for name, threshold in self.thresholds.items():
            if not 0 <= threshold <= 1:
                raise ValueError(f"the threshold of class '{name}' is {threshold:g}, outside 0 to 1")

    def members(self, probabilities_NC: np.ndarray) -> np.ndarray:
        """Return which classes the set of each image contains: (N, C) bool. The most probable one always is."""
        members_NC = probabilities_NC >= np.array(list(self.thresholds.values()))
        members_NC[np.arange(len(probabilities_NC)), probabilities_NC.argmax(axis=1)] = True
        return members_NC


def require_reachable(
    labels_N: np.ndarray, groups_N: np.ndarray, *, classes: Sequence[str], coverage: float, per_class: bool
) -> None:
    """Refuse a coverage that so few images cannot ensure; arguments as for ``fit_prediction_sets``.

    Raises:
        TwinbudError: There are too few images; the error names the highest coverage that they allow.
    """
    for k, name in enumerate(classes) if per_class else [(None, "")]:
        num_groups = len(np.unique(groups_N if k is None else groups_N[labels_N == k]))
        if num_groups >= coverage * (num_groups + 1) - _ROUNDING:
            continue
        whose = "" if k is None else f" of class '{name}'"
        highest = math.floor(1000 * num_groups / (num_groups + 1)) / 1000
        ways = [f"give at most {highest:g}"] if num_groups else []
        ways += ["leave out --per-class"] if per_class else []
        fix = ", or ".join([*ways, "label more images"])
        raise TwinbudError(
            f"{num_groups} patients or images{whose} cannot ensure a coverage of {coverage:g}",
            where="--coverage",
            fix=fix[0].upper() + fix[1:],
        )


def fit_prediction_sets(
    probabilities_NC: np.ndarray,
    labels_N: np.ndarray,
    groups_N: np.ndarray,
    *,
    classes: Sequence[str],
    coverage: float,
    per_class: bool,
) -> PredictionSets:
    """Choose the thresholds of prediction sets.

    Args:
        probabilities_NC: (N, C) probabilities of images that the networks have not learned from.
        labels_N: (N,) class indices.
        groups_N: (N,) int, the patient of each image; images without a known one have a number of their own.
        classes: C names.
        coverage: In (0, 1).
        per_class: Choose a threshold for the images of each class, instead of one for all.

    Raises:
        TwinbudError: See ``require_reachable``.
    """
    require_reachable(labels_N, groups_N, classes=classes, coverage=coverage, per_class=per_class)
    label_probability_N = probabilities_NC[np.arange(len(labels_N)), labels_N]
    if not per_class:
        threshold = _threshold(label_probability_N, groups_N, coverage)
        return PredictionSets(coverage=coverage, per_class=False, thresholds=dict.fromkeys(classes, threshold))
    thresholds: dict[str, float] = {}
    for k, name in enumerate(classes):
        of_class = labels_N == k
        thresholds[name] = _threshold(label_probability_N[of_class], groups_N[of_class], coverage)
    return PredictionSets(coverage=coverage, per_class=True, thresholds=thresholds)


def _threshold(label_probability_N: np.ndarray, groups_N: np.ndarray, coverage: float) -> float:
    """Return the largest threshold that the right class of a new image reaches with probability ``coverage``."""
    _, group_of, sizes = np.unique(groups_N, return_inverse=True, return_counts=True)
    order = np.argsort(-label_probability_N, kind="stable")
    covered = np.cumsum(1 / sizes[group_of[order]]) / (len(sizes) + 1)
    return float(label_probability_N[order][np.searchsorted(covered, coverage - _ROUNDING)])
