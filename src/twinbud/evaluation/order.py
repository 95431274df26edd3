"""Metrics of grades: how far predictions are from their labels. Pure functions of confusion matrices."""

from __future__ import annotations

import numpy as np


def weighted_order_metrics(confusion_BKK: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the metrics of grades from B confusion matrices.

    Args:
        confusion_BKK: Weights of the images: rows are labels, columns are predictions, both in the order of the grades.

    Returns:
        (B,) float64 each: ``kappa`` (Cohen 1968, quadratic weights), NaN where labels and predictions are all of one
        grade; ``mae``, mean absolute error in grades; ``within_one``, share of images at most one grade off.
    """
    grades = np.arange(confusion_BKK.shape[1])
    distance_KK = np.abs(grades[:, None] - grades)
    total_B = confusion_BKK.sum(axis=(1, 2))
    expected_BKK = confusion_BKK.sum(2)[:, :, None] * confusion_BKK.sum(1)[:, None, :] / total_B[:, None, None]
    observed_B, chance_B = ((matrices * distance_KK**2).sum(axis=(1, 2)) for matrices in (confusion_BKK, expected_BKK))
    ratio_B = np.divide(observed_B, chance_B, out=np.full(observed_B.shape, np.nan), where=chance_B > 0)
    return {
        "kappa": 1 - ratio_B,
        "mae": (confusion_BKK * distance_KK).sum(axis=(1, 2)) / total_B,
        "within_one": (confusion_BKK * (distance_KK <= 1)).sum(axis=(1, 2)) / total_B,
    }


def order_metrics(confusion_KK: np.ndarray) -> dict[str, float | None]:
    """Compute the metrics of grades from one confusion matrix; see ``weighted_order_metrics``."""
    values = {name: float(value[0]) for name, value in weighted_order_metrics(confusion_KK[None]).items()}
    return {name: value if np.isfinite(value) else None for name, value in values.items()}
