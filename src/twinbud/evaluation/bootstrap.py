"""Percentile bootstrap intervals of the metrics. Pure functions.

Units of resampling are patients, or images where no patient is known. A replicate is a vector of weights on the
images, so that no prediction is copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from twinbud.core.rng import numpy_stream
from twinbud.data.identity import patient_key
from twinbud.evaluation.calibration import brier_per_image, calibration_gaps
from twinbud.evaluation.order import weighted_order_metrics
from twinbud.evaluation.predictions import Predictions

Interval = tuple[float, float]
"""Lower and upper bound of a 95 % interval."""

_BLOCK_ELEMENTS = 2**20
"""Weights in memory at once (8 MiB of float64); replicates are computed in blocks of this size."""


def unit_of_each_image(patients: Sequence[str | None] | None, num_images: int) -> np.ndarray:
    """Return the (N,) index of each image's bootstrap unit; an image without a patient key is a unit of its own."""
    if patients is None:
        return np.arange(num_images)
    index: dict[tuple[str, str | int], int] = {}
    keys = (("image", i) if patient is None else ("patient", patient) for i, patient in enumerate(patients))
    return np.array([index.setdefault(key, len(index)) for key in keys])


def bootstrap_units(predictions: Predictions) -> tuple[bool, np.ndarray]:
    """Return whether any patient is known, and the (N,) index of the unit of each image."""
    patients = [patient_key(patient) for patient in predictions.patient_ids or ()]
    by_patient = any(patient is not None for patient in patients)
    return by_patient, unit_of_each_image(patients if by_patient else None, len(predictions.paths))


def confidence_intervals(
    predictions: Predictions,
    labels: np.ndarray,
    unit_of_image: np.ndarray,
    *,
    auroc_classes: Sequence[int],
    num_bootstrap: int,
    seed: int,
) -> dict[str, Interval | None]:
    """Compute the 95 % percentile interval of each metric of ``TaskMetrics`` that the task has, by name.

    Args:
        predictions: N images of K classes.
        labels: (N,) class indices.
        unit_of_image: (N,) index of the unit of each image.
        auroc_classes: Classes whose AUROCs the macro AUROC averages.
        num_bootstrap: Number of replicates, at least 1.
        seed: Seed of the random stream "bootstrap".

    Returns:
        None for a metric that every replicate leaves undefined. A replicate without images of a class averages over
        the other classes.
    """
    images = _Images(
        labels=labels,
        predicted=predictions.predicted,
        probabilities=predictions.probabilities,
        calibration_gaps=calibration_gaps(predictions.confidence, predictions.predicted == labels),
        brier=brier_per_image(labels, predictions.probabilities),
        auroc_classes=auroc_classes,
        has_order=predictions.asked.has_order,
    )
    num_classes = len(predictions.classes)
    size = max(len(unit_of_image), num_classes**2)
    blocks = [_replicates(images, weights) for weights in bootstrap_weights(unit_of_image, num_bootstrap, size, seed)]
    return {name: percentiles(np.concatenate([block[name] for block in blocks])) for name in blocks[0]}


def paired_difference(
    first_N: np.ndarray, second_N: np.ndarray, unit_of_image: np.ndarray, *, seed: int, num_bootstrap: int = 2000
) -> tuple[float, Interval]:
    """Return the mean of ``first_N - second_N`` and its 95 % percentile interval over resampled units.

    Args:
        first_N: (N,) a number of each image, such as its loss under one model.
        second_N: (N,) the same under another one.
        unit_of_image: (N,) index of the unit of each image, of at least two units.
        seed: Seed of the random stream "bootstrap".
        num_bootstrap: Number of replicates, at least 1.
    """
    gaps_N = first_N.astype(np.float64) - second_N
    blocks = bootstrap_weights(unit_of_image, num_bootstrap, len(gaps_N), seed)
    interval = percentiles(np.concatenate([weights @ gaps_N / weights.sum(axis=1) for weights in blocks]))
    assert interval is not None
    return float(gaps_N.mean()), interval


def weighted_aurocs(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute the AUROC under each of B weightings of the same N images; ties count half (Mann-Whitney).

    Args:
        positive: (N,) bool.
        scores: (N,) float64.
        weights: (B, N) non-negative float64.

    Returns:
        (B,) float64 in [0, 1]; NaN where the positives or the negatives have no weight.
    """
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sorted_weights = weights[:, order]
    positives = np.add.reduceat(sorted_weights * positive[order], starts, axis=1)
    negatives = np.add.reduceat(sorted_weights * ~positive[order], starts, axis=1)
    below = np.cumsum(negatives, axis=1) - 0.5 * negatives
    pairs = positives.sum(1) * negatives.sum(1)
    return ratio((positives * below).sum(1), pairs)


def weighted_average_precisions(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute the average precision under each of B weightings of the same N images, as scikit-learn does.

    Args:
        positive: (N,) bool.
        scores: (N,) float64.
        weights: (B, N) non-negative float64.

    Returns:
        (B,) float64 in [0, 1]; NaN where the positives have no weight.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    ends = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])
    sorted_weights = weights[:, order]
    hits = np.cumsum(sorted_weights * positive[order], axis=1)[:, ends]
    chosen = np.cumsum(sorted_weights, axis=1)[:, ends]
    precision = np.divide(hits, chosen, out=np.zeros_like(hits), where=chosen > 0)
    return ratio((precision * np.diff(hits, axis=1, prepend=0.0)).sum(axis=1), hits[:, -1])


@dataclass(frozen=True, kw_only=True, eq=False)
class _Images:
    """Arrays that every replicate weights, computed once."""

    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    calibration_gaps: np.ndarray
    brier: np.ndarray
    auroc_classes: Sequence[int]
    has_order: bool


def bootstrap_weights(unit_of_image: np.ndarray, num_bootstrap: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Yield blocks of (b, N) float64: how often each image occurs in each replicate, whatever the block size.

    Nothing for a single unit, whose replicates are all the same and say nothing about others.

    Args:
        unit_of_image: (N,) index of the unit of each image.
        num_bootstrap: Number of replicates.
        size: Elements in memory for each replicate, which decide the block size.
        seed: Seed of the random stream "bootstrap".
    """
    num_units = int(unit_of_image.max()) + 1
    if num_units < 2:
        return
    block = max(1, _BLOCK_ELEMENTS // size)
    random = numpy_stream("bootstrap", seed)
    for first in range(0, num_bootstrap, block):
        count = min(block, num_bootstrap - first)
        drawn = random.integers(num_units, size=(count, num_units))
        cells = drawn + num_units * np.arange(count)[:, None]
        times = np.bincount(cells.ravel(), minlength=count * num_units).reshape(count, num_units)
        yield times[:, unit_of_image].astype(np.float64)


def _replicates(images: _Images, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the (b,) values of each metric; NaN where a replicate leaves it undefined."""
    num_replicates, num_classes = len(weights), images.probabilities.shape[1]
    cells = images.labels * num_classes + images.predicted + num_classes**2 * np.arange(num_replicates)[:, None]
    confusion = np.bincount(cells.ravel(), weights=weights.ravel(), minlength=num_replicates * num_classes**2).reshape(
        num_replicates, num_classes, num_classes
    )
    correct, of_class, predicted = np.einsum("bkk->bk", confusion), confusion.sum(2), confusion.sum(1)
    total = of_class.sum(1)
    aurocs = np.full((num_replicates, max(1, len(images.auroc_classes))), np.nan)
    for column, k in enumerate(images.auroc_classes):
        aurocs[:, column] = weighted_aurocs(images.labels == k, images.probabilities[:, k], weights)
    agreement = correct.sum(1) * total - (of_class * predicted).sum(1)
    spread = np.sqrt((total**2 - (predicted**2).sum(1)) * (total**2 - (of_class**2).sum(1)))
    return {
        "accuracy": correct.sum(1) / total,
        "balanced_accuracy": mean_of_defined(ratio(correct, of_class)),
        "f1_macro": mean_of_defined(ratio(2 * correct, of_class + predicted)),
        "auroc_macro": mean_of_defined(aurocs),
        "mcc": np.where(spread > 0, ratio(agreement, spread), 0.0),
        "ece": np.abs(weights @ images.calibration_gaps).sum(1) / total,
        "brier": weights @ images.brier / total,
        **(weighted_order_metrics(confusion) if images.has_order else {}),
    }


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Divide element by element; NaN where the divisor is not positive."""
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Return the mean of each row over the values that are finite; NaN where none is."""
    defined = np.isfinite(values)
    return ratio(np.where(defined, values, 0.0).sum(1), defined.sum(1).astype(np.float64))


def percentiles(values: np.ndarray) -> Interval | None:
    """Return the 95 % percentile interval of the values that are finite; None without any."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)
