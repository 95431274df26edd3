"""Calibration: how well the probability of the predicted class agrees with the accuracy. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NUM_CALIBRATION_BINS = 15


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """The images whose confidence lies in (low, high]; the first bin includes 0."""

    low: float
    high: float
    count: int
    """Number of images."""
    confidence: float | None
    """Mean confidence, in [0, 1]; None for an empty bin."""
    accuracy: float | None
    """Accuracy, in [0, 1]; None for an empty bin."""


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Compute the mean absolute difference of accuracy and confidence over 15 equal-width bins.

    Bins are weighted by their images; the value is in [0, 1] (Guo et al., ICML 2017, eq. 3).

    Args:
        confidence: (N,) float64 probability of the predicted class.
        correct: (N,) bool, whether the prediction equals the label.
    """
    gaps = np.bincount(equal_width_bins(confidence), weights=correct - confidence, minlength=NUM_CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def calibration_gaps(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Return correct - confidence of each image in the column of its bin, and 0 in the others.

    Args:
        confidence: (N,) float64 probability of the predicted class.
        correct: (N,) bool, whether the prediction equals the label.

    Returns:
        (N, 15) float64 in [-1, 1]; |sums over the images|, summed and divided by N, is the expected calibration error.
    """
    gaps = np.zeros((len(confidence), NUM_CALIBRATION_BINS))
    gaps[np.arange(len(confidence)), equal_width_bins(confidence)] = correct - confidence
    return gaps


def brier_per_image(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the squared error of each image's probabilities, summed over the classes (Brier 1950).

    Args:
        labels: (N,) int64 class indices.
        probabilities: (N, K) float64; rows sum to 1.

    Returns:
        (N,) float64 in [0, 2].
    """
    return ((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(axis=1)


def reliability_bins(confidence: np.ndarray, correct: np.ndarray) -> tuple[ReliabilityBin, ...]:
    """Compute the 15 bins behind the expected calibration error; arguments as there."""
    bins = equal_width_bins(confidence)
    rows: list[ReliabilityBin] = []
    for index in range(NUM_CALIBRATION_BINS):
        inside = bins == index
        rows.append(
            ReliabilityBin(
                low=index / NUM_CALIBRATION_BINS,
                high=(index + 1) / NUM_CALIBRATION_BINS,
                count=int(inside.sum()),
                confidence=float(confidence[inside].mean()) if inside.any() else None,
                accuracy=float(correct[inside].mean()) if inside.any() else None,
            )
        )
    return tuple(rows)


def equal_width_bins(confidence: np.ndarray) -> np.ndarray:
    """Return the (N,) int64 index of the bin (low, high], of 15, that contains each confidence."""
    return np.clip(np.ceil(confidence * NUM_CALIBRATION_BINS).astype(int) - 1, 0, NUM_CALIBRATION_BINS - 1)


def equal_mass_bins(confidence: np.ndarray) -> np.ndarray:
    """Return the (N,) int64 index of one of 15 bins that hold about equally many of the ordered confidences."""
    ranks = np.empty(len(confidence), dtype=np.int64)
    ranks[np.argsort(confidence, kind="stable")] = np.arange(len(confidence))
    return ranks * NUM_CALIBRATION_BINS // len(confidence)
