"""How good the predictions are, and how sure we can be of it. Pure functions.

Point values come from scikit-learn; intervals from a bootstrap over patients (images where no patient is
known), whose replicates are weights on the images, so that no prediction is ever copied.

Undefined values are None, never NaN or a silent 0. Each macro value is the mean over the classes for which
it is defined; `macro_over` names them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    precision_score,
    recall_score,
    roc_auc_score,
)

from twinbud.core.errors import TwinbudError
from twinbud.core.rng import numpy_stream
from twinbud.data.identity import patient_key
from twinbud.evaluation.predictions import Predictions

NUM_CALIBRATION_BINS = 15
INTERVAL_METRICS = ("accuracy", "balanced_accuracy", "f1_macro", "auroc_macro", "mcc", "ece", "brier")
_BLOCK_ELEMENTS = 2**20
"""Weights held at once while bootstrapping (8 MiB): replicates are made in blocks of this many."""


def evaluate(predictions: Predictions, *, num_bootstrap: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Every number of the report, ready for JSON.

    `ece` is the expected calibration error of the predicted class over 15 equal-width bins of confidence
    (Guo et al. 2017, eq. 3). `brier` is the multi-class score: squared error summed over classes, mean over
    images, in [0, 2]. `auroc_macro` is one-vs-rest; with two classes it is the AUROC of the second.
    `f1_macro` is over the classes in truth or prediction, `balanced_accuracy` over those in the truth, as in
    scikit-learn. Intervals are 95 % percentile bootstrap; a replicate that leaves a class out takes its macro
    values over the others. Resampling adds noise to every bin, so the interval of `ece` leans upwards.

    Args:
        predictions: N >= 1 labelled images of K >= 2 classes.
        num_bootstrap: Replicates; 0 leaves every interval None, as a single patient does.
        seed: Of the named stream "bootstrap".

    Raises:
        TwinbudError: Without labels, without images, or with fewer than two classes.
    """
    labels = _require_labels(predictions)
    predicted, classes = predictions.predicted, predictions.classes
    confusion = confusion_matrix(labels, predicted, labels=np.arange(len(classes)))
    present, mentioned = confusion.sum(1) > 0, (confusion.sum(0) + confusion.sum(1)) > 0
    aurocs = _aurocs(labels, predictions.probabilities)
    ranked = _macro_aurocs(aurocs)
    point = {
        "accuracy": accuracy_score(labels, predicted),
        "balanced_accuracy": recall_score(labels, predicted, labels=np.flatnonzero(present), average="macro"),
        "f1_macro": f1_score(labels, predicted, labels=np.flatnonzero(mentioned), average="macro"),
        "auroc_macro": np.mean([ranked[k] for k in ranked]) if ranked else None,
        "mcc": matthews_corrcoef(labels, predicted) if mentioned.sum() > 1 else 0.0,
        "ece": expected_calibration_error(predictions.confidence, predicted == labels),
        "brier": brier_per_image(labels, predictions.probabilities).mean(),
    }
    unit_of_image, unit = _bootstrap_units(predictions.patient_ids, len(labels))
    return {
        **{name: None if value is None else float(value) for name, value in point.items()},
        "num_test": len(labels),
        "macro_over": {
            "balanced_accuracy": [classes[k] for k in np.flatnonzero(present)],
            "f1_macro": [classes[k] for k in np.flatnonzero(mentioned)],
            "auroc_macro": [classes[k] for k in ranked],
        },
        "per_class": _per_class(labels, predicted, classes, aurocs),
        "confusion_matrix": confusion.tolist(),
        "reliability": reliability_bins(predictions.confidence, predicted == labels),
        "confidence_intervals": _intervals(predictions, labels, unit_of_image, num_bootstrap, seed),
        "bootstrap_unit": unit,
        "num_bootstrap_units": int(unit_of_image.max()) + 1,
        "num_bootstrap": num_bootstrap,
    }


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Mean |accuracy - confidence| over 15 equal-width bins, weighted by their images; in [0, 1].

    Args:
        confidence: (N,) probability of the predicted class.
        correct: (N,) bool.
    """
    gaps = np.bincount(_bin_of(confidence), weights=correct - confidence, minlength=NUM_CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def brier_per_image(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(N,) squared error of each row summed over the classes, in [0, 2] (Brier 1950)."""
    return ((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(axis=1)


def reliability_bins(confidence: np.ndarray, correct: np.ndarray) -> list[dict[str, Any]]:
    """The 15 bins behind `ece`: low, high, count, mean confidence and accuracy (None where empty)."""
    bins = _bin_of(confidence)
    rows: list[dict[str, Any]] = []
    for index in range(NUM_CALIBRATION_BINS):
        inside = bins == index
        count = int(inside.sum())
        rows.append(
            {
                "low": index / NUM_CALIBRATION_BINS,
                "high": (index + 1) / NUM_CALIBRATION_BINS,
                "count": count,
                "confidence": float(confidence[inside].mean()) if count else None,
                "accuracy": float(correct[inside].mean()) if count else None,
            }
        )
    return rows


def weighted_aurocs(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The AUROC under each of B weightings of the same N images; ties count half (Mann-Whitney).

    Args:
        positive: (N,) bool.
        scores: (N,) float64.
        weights: (B, N) non-negative float64.

    Returns:
        (B,) float64 in [0, 1]; NaN where the positives or the negatives weigh nothing.
    """
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sorted_weights = weights[:, order]
    positives = np.add.reduceat(sorted_weights * positive[order], starts, axis=1)
    negatives = np.add.reduceat(sorted_weights * ~positive[order], starts, axis=1)
    below = np.cumsum(negatives, axis=1) - 0.5 * negatives
    pairs = positives.sum(1) * negatives.sum(1)
    return _ratio((positives * below).sum(1), pairs)


def _require_labels(predictions: Predictions) -> np.ndarray:
    if predictions.labels is None:
        raise TwinbudError("labelled images to evaluate", got="images without labels")
    if len(predictions.paths) == 0:
        raise TwinbudError("at least one image to evaluate", got="none")
    if len(predictions.classes) < 2:
        raise TwinbudError("at least two classes", got=str(len(predictions.classes)))
    return predictions.labels


def _aurocs(labels: np.ndarray, probabilities: np.ndarray) -> list[float | None]:
    """One-vs-rest, None for a class with no images or with all of them."""
    values: list[float | None] = []
    for k in range(probabilities.shape[1]):
        positive = labels == k
        defined = 0 < positive.sum() < len(labels)
        values.append(float(roc_auc_score(positive, probabilities[:, k])) if defined else None)
    return values


def _macro_aurocs(aurocs: list[float | None]) -> dict[int, float]:
    """The classes, and their AUROCs, that the macro value is the mean of."""
    defined = {k: value for k, value in enumerate(aurocs) if value is not None}
    return {1: defined[1]} if len(aurocs) == 2 and defined else defined


def _per_class(
    labels: np.ndarray, predicted: np.ndarray, classes: tuple[str, ...], aurocs: list[float | None]
) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(classes):
        truth, said = labels == k, predicted == k
        rows[name] = {
            "sensitivity": float(recall_score(truth, said)) if truth.any() else None,
            "specificity": float(recall_score(~truth, ~said)) if not truth.all() else None,
            "precision": float(precision_score(truth, said)) if said.any() else None,
            "f1": float(f1_score(truth, said)) if (truth | said).any() else None,
            "auroc": aurocs[k],
            "support": int(truth.sum()),
        }
    return rows


def _bootstrap_units(patient_ids: tuple[str | None, ...] | None, num_images: int) -> tuple[np.ndarray, str]:
    """(N,) index of the unit that each image belongs to; an image without an id is a unit of its own."""
    patients = [patient_key(patient) for patient in patient_ids or ()]
    if all(patient is None for patient in patients):
        return np.arange(num_images), "image"
    index: dict[tuple[str, str | int], int] = {}
    keys = (("image", i) if patient is None else ("patient", patient) for i, patient in enumerate(patients))
    return np.array([index.setdefault(key, len(index)) for key in keys]), "patient"


class _Images(NamedTuple):
    """What the replicates weigh, computed once."""

    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    calibration_gaps: np.ndarray
    """(N, 15): correct - confidence, in the column of its bin."""
    brier: np.ndarray
    ranked: list[int]


def _intervals(
    predictions: Predictions, labels: np.ndarray, unit_of_image: np.ndarray, num_bootstrap: int, seed: int
) -> dict[str, list[float] | None]:
    if num_bootstrap < 1 or unit_of_image.max() == 0:
        return dict.fromkeys(INTERVAL_METRICS)
    correct = predictions.predicted == labels
    gaps = np.zeros((len(labels), NUM_CALIBRATION_BINS))
    gaps[np.arange(len(labels)), _bin_of(predictions.confidence)] = correct - predictions.confidence
    images = _Images(
        labels,
        predictions.predicted,
        predictions.probabilities,
        gaps,
        brier_per_image(labels, predictions.probabilities),
        list(_macro_aurocs(_aurocs(labels, predictions.probabilities))),
    )
    blocks = [
        _replicates(images, weights)
        for weights in _bootstrap_weights(unit_of_image, num_bootstrap, len(predictions.classes), seed)
    ]
    return {name: _percentiles(np.concatenate([b[name] for b in blocks])) for name in INTERVAL_METRICS}


def _bootstrap_weights(
    unit_of_image: np.ndarray, num_bootstrap: int, num_classes: int, seed: int
) -> Iterator[np.ndarray]:
    """Blocks of (b, N) float64: how often each image is in each replicate. Independent of the block size."""
    num_units = int(unit_of_image.max()) + 1
    block = max(1, _BLOCK_ELEMENTS // max(len(unit_of_image), num_classes**2))
    random = numpy_stream("bootstrap", seed)
    for first in range(0, num_bootstrap, block):
        count = min(block, num_bootstrap - first)
        drawn = random.integers(num_units, size=(count, num_units))
        cells = drawn + num_units * np.arange(count)[:, None]
        times = np.bincount(cells.ravel(), minlength=count * num_units).reshape(count, num_units)
        yield times[:, unit_of_image].astype(np.float64)


def _replicates(images: _Images, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Each metric's (b,) values; NaN where a replicate leaves it undefined."""
    num_replicates, num_classes = len(weights), images.probabilities.shape[1]
    cells = images.labels * num_classes + images.predicted + num_classes**2 * np.arange(num_replicates)[:, None]
    confusion = np.bincount(cells.ravel(), weights=weights.ravel(), minlength=num_replicates * num_classes**2).reshape(
        num_replicates, num_classes, num_classes
    )
    hits, truly, said = np.einsum("bkk->bk", confusion), confusion.sum(2), confusion.sum(1)
    total = truly.sum(1)
    aurocs = np.full((num_replicates, max(1, len(images.ranked))), np.nan)
    for column, k in enumerate(images.ranked):
        aurocs[:, column] = weighted_aurocs(images.labels == k, images.probabilities[:, k], weights)
    agreement = hits.sum(1) * total - (truly * said).sum(1)
    spread = np.sqrt((total**2 - (said**2).sum(1)) * (total**2 - (truly**2).sum(1)))
    return {
        "accuracy": hits.sum(1) / total,
        "balanced_accuracy": _mean_of_defined(_ratio(hits, truly)),
        "f1_macro": _mean_of_defined(_ratio(2 * hits, truly + said)),
        "auroc_macro": _mean_of_defined(aurocs),
        "mcc": np.where(spread > 0, _ratio(agreement, spread), 0.0),
        "ece": np.abs(weights @ images.calibration_gaps).sum(1) / total,
        "brier": weights @ images.brier / total,
    }


def _bin_of(confidence: np.ndarray) -> np.ndarray:
    """(N,) index of the bin (low, high] that holds each confidence."""
    return np.clip(np.ceil(confidence * NUM_CALIBRATION_BINS).astype(int) - 1, 0, NUM_CALIBRATION_BINS - 1)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    defined = np.isfinite(values)
    return _ratio(np.where(defined, values, 0.0).sum(1), defined.sum(1).astype(np.float64))


def _percentiles(values: np.ndarray) -> list[float] | None:
    finite = values[np.isfinite(values)]
    return [float(v) for v in np.percentile(finite, [2.5, 97.5])] if len(finite) else None
