"""Thresholds of one class against the rest, chosen for a wanted sensitivity or specificity. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.metrics import roc_curve

from twinbud.evaluation.bootstrap import Interval, bootstrap_weights, percentiles, ratio

Criterion = Literal["specificity 0.95", "sensitivity 0.95", "youden"]
CRITERIA: Mapping[Criterion, str] = {
    "specificity 0.95": "specificity 95 %",
    "sensitivity 0.95": "sensitivity 95 %",
    "youden": "largest sum",
}
"""Each with its short name: the highest sensitivity with a specificity of at least 95 %, the highest specificity with a
sensitivity of at least 95 %, and the largest sum of both (Youden)."""
_LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """A threshold, and how it does on the images that it was chosen on.

    Attributes:
        threshold: An image is positive from this probability on, in [0, 1].
        sensitivity: Share of the positive images that reach it, in [0, 1].
        specificity: Share of the negative images that do not, in [0, 1].

    Raises:
        ValueError: A value is outside its range.
    """

    threshold: float
    sensitivity: float
    specificity: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value:g}, outside 0 to 1")


@dataclass(frozen=True, kw_only=True)
class MeasuredPoint:
    """An operating point on other images, in [0, 1] each; None without positive, or negative, images.

    Attributes:
        threshold: That of the point.
        sensitivity: Share of the positive images that reach it.
        specificity: Share of the negative images that do not.
        sensitivity_interval: 95 % percentile bootstrap interval; None also with a single unit of resampling.
        specificity_interval: Likewise.
    """

    threshold: float
    sensitivity: float | None
    specificity: float | None
    sensitivity_interval: Interval | None
    specificity_interval: Interval | None


def choose_points(is_positive_N: np.ndarray, probability_N: np.ndarray) -> dict[Criterion, OperatingPoint]:
    """Choose the operating points of one class on images that the networks have not learned from.

    Args:
        is_positive_N: (N,) bool.
        probability_N: (N,) probability of the class.

    Returns:
        By criterion; empty if all images are positive, or none.
    """
    if is_positive_N.all() or not is_positive_N.any():
        return {}
    false_positive, sensitivity, thresholds = roc_curve(is_positive_N, probability_N, drop_intermediate=False)
    specificity = 1 - false_positive
    enough = np.nextafter(_LEVEL, 0)
    places: dict[Criterion, int] = {
        "specificity 0.95": int(np.argmax(np.where(specificity >= enough, sensitivity, -1))),
        # the last of equal specificities has the highest sensitivity
        "sensitivity 0.95": int(np.flatnonzero(specificity == specificity[sensitivity >= enough].max())[-1]),
        "youden": int(np.argmax(sensitivity + specificity)),
    }
    # the first threshold of roc_curve is infinite: no image is positive
    return {
        criterion: OperatingPoint(
            threshold=float(min(thresholds[place], 1.0)) if np.isfinite(thresholds[place]) else 1.0,
            sensitivity=float(sensitivity[place]),
            specificity=float(specificity[place]),
        )
        for criterion, place in places.items()
    }


def measure_point(
    threshold: float,
    is_positive_N: np.ndarray,
    probability_N: np.ndarray,
    unit_of_image: np.ndarray,
    *,
    num_bootstrap: int,
    seed: int,
) -> MeasuredPoint:
    """Measure a threshold on images that it was not chosen on.

    Args:
        threshold: An image is positive from this probability on.
        is_positive_N: (N,) bool.
        probability_N: (N,) probability of the class.
        unit_of_image: (N,) index of each image's bootstrap unit.
        num_bootstrap: Number of replicates.
        seed: Seed of the random stream "bootstrap".
    """
    is_right_N = (probability_N >= threshold) == is_positive_N
    values: list[float | None] = []
    intervals: list[Interval | None] = []
    for counted_N in (is_positive_N, ~is_positive_N):
        values.append(float(is_right_N[counted_N].mean()) if counted_N.any() else None)
        blocks = [
            ratio(weights @ (is_right_N & counted_N), weights @ counted_N.astype(np.float64))
            for weights in bootstrap_weights(unit_of_image, num_bootstrap, len(unit_of_image), seed)
        ]
        intervals.append(percentiles(np.concatenate(blocks)) if blocks else None)
    return MeasuredPoint(
        threshold=threshold,
        sensitivity=values[0],
        specificity=values[1],
        sensitivity_interval=intervals[0],
        specificity_interval=intervals[1],
    )


def net_benefit(is_positive_N: np.ndarray, probability_N: np.ndarray, thresholds_T: np.ndarray) -> np.ndarray:
    """Compute the net benefit of treating the images that reach each threshold (Vickers and Elkin, 2006).

    Args:
        is_positive_N: (N,) bool.
        probability_N: (N,) probability of the class.
        thresholds_T: (T,) in [0, 1).

    Returns:
        (T,) float64: true positives - false positives · t / (1 - t), each as a share of the N images.
    """
    treated_TN = probability_N >= thresholds_T[:, None]
    true = (treated_TN & is_positive_N).mean(axis=1)
    false = (treated_TN & ~is_positive_N).mean(axis=1)
    return true - false * thresholds_T / (1 - thresholds_T)
