"""Metrics of predictions, with 95 % intervals. Pure functions.

Point values come from scikit-learn or its confusion matrix. An undefined value is None, never NaN or 0. A macro value
is the mean over the classes for which it is defined; ``macro_over`` names them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    matthews_corrcoef,
    roc_auc_score,
)

from twinbud.config.task import Aggregate
from twinbud.core.errors import TwinbudError
from twinbud.evaluation.bootstrap import Interval, bootstrap_units, confidence_intervals
from twinbud.evaluation.calibration import (
    brier_per_image,
    expected_calibration_error,
    reliability_bins,
)
from twinbud.evaluation.metric_records import (
    IMBALANCE,
    POINT_METRICS,
    ClassMetrics,
    EvaluationMetrics,
    PointMetrics,
)
from twinbud.evaluation.multi_label import evaluate_labels
from twinbud.evaluation.order import order_metrics
from twinbud.evaluation.patients import predictions_of_patients
from twinbud.evaluation.predictions import Predictions

__all__ = ["IMBALANCE", "POINT_METRICS", "ClassMetrics", "EvaluationMetrics", "PointMetrics", "evaluate"]


def evaluate(
    predictions: Predictions, *, num_bootstrap: int = 1000, seed: int = 0, aggregate: Aggregate | None = None
) -> EvaluationMetrics:
    """Compute all metrics of labelled predictions.

    Args:
        predictions: N >= 1 labelled images of K >= 2 classes.
        num_bootstrap: Number of bootstrap replicates; with 0, every interval is None.
        seed: Seed of the random stream "bootstrap".
        aggregate: How to join the probabilities of a patient's images, for metrics of the patients as well; None for
            metrics of the images alone.

    Raises:
        TwinbudError: No labels, no images, or fewer than two classes.
    """
    metrics = _evaluate_images(predictions, num_bootstrap=num_bootstrap, seed=seed)
    joined = predictions_of_patients(predictions, aggregate) if aggregate else None
    if joined is None:
        return metrics
    patients = _evaluate_images(joined.predictions, num_bootstrap=num_bootstrap, seed=seed)
    return replace(metrics, patients=replace(patients, aggregate=aggregate, num_left_out=joined.num_left_out))


def _evaluate_images(predictions: Predictions, *, num_bootstrap: int, seed: int) -> EvaluationMetrics:
    labels = _require_labels(predictions)
    by_patient, unit_of_image = bootstrap_units(predictions)
    units: dict[str, Any] = {
        "bootstrap_unit": "patient" if by_patient else "image",
        "num_bootstrap_units": int(unit_of_image.max()) + 1,
        "num_bootstrap": num_bootstrap,
    }
    if not predictions.asked.is_exclusive:
        return evaluate_labels(predictions, unit_of_image, units, seed=seed)
    predicted, classes = predictions.predicted, predictions.classes
    confusion = confusion_matrix(labels, predicted, labels=np.arange(len(classes)))
    in_labels, in_either = confusion.sum(1) > 0, (confusion.sum(0) + confusion.sum(1)) > 0
    aurocs = _aurocs(labels, predictions.probabilities)
    per_class = _class_metrics(confusion, aurocs)
    averaged = _averaged_aurocs(aurocs)
    order = order_metrics(confusion) if predictions.asked.has_order else {}
    intervals: dict[str, Interval | None] = dict.fromkeys((*POINT_METRICS, *order))
    if num_bootstrap > 0 and unit_of_image.max() > 0:
        intervals = confidence_intervals(
            predictions,
            labels,
            unit_of_image,
            auroc_classes=list(averaged),
            num_bootstrap=num_bootstrap,
            seed=seed,
        )
    return EvaluationMetrics(
        accuracy=float(accuracy_score(labels, predicted)),
        balanced_accuracy=_mean(row.sensitivity for row in per_class),
        f1_macro=_mean(row.f1 for row in per_class),
        auroc_macro=float(np.mean(list(averaged.values()))) if averaged else None,
        mcc=float(matthews_corrcoef(labels, predicted)) if in_either.sum() > 1 else 0.0,
        ece=expected_calibration_error(predictions.confidence, predicted == labels),
        brier=float(brier_per_image(labels, predictions.probabilities).mean()),
        **order,
        num_test=len(labels),
        macro_over={
            "balanced_accuracy": tuple(classes[k] for k in np.flatnonzero(in_labels)),
            "f1_macro": tuple(classes[k] for k in np.flatnonzero(in_either)),
            "auroc_macro": tuple(classes[k] for k in averaged),
        },
        per_class=dict(zip(classes, per_class, strict=True)),
        confusion_matrix=tuple(tuple(row) for row in confusion.tolist()),
        reliability=reliability_bins(predictions.confidence, predicted == labels),
        confidence_intervals=intervals,
        task=predictions.asked.name if predictions.asked.has_order else None,
        **units,
    )


def _require_labels(predictions: Predictions) -> np.ndarray:
    if predictions.labels is None:
        raise TwinbudError("the images have no labels", where="metrics", fix="Give the labels of the images")
    if len(predictions.paths) == 0:
        raise TwinbudError("there are 0 images", where="metrics", fix="Give at least one")
    if len(predictions.classes) < 2:
        problem = f"the number of classes is {len(predictions.classes)}"
        raise TwinbudError(problem, where="metrics", fix="Give predictions for at least two classes")
    return predictions.labels


def _aurocs(labels: np.ndarray, probabilities: np.ndarray) -> list[float | None]:
    """Return the one-vs-rest AUROC of each class; None for a class of no images or of all images."""
    values: list[float | None] = []
    for k in range(probabilities.shape[1]):
        positive = labels == k
        defined = 0 < positive.sum() < len(labels)
        values.append(float(roc_auc_score(positive, probabilities[:, k])) if defined else None)
    return values


def _averaged_aurocs(aurocs: list[float | None]) -> dict[int, float]:
    """Return the AUROCs that the macro value averages, by class index."""
    defined = {k: value for k, value in enumerate(aurocs) if value is not None}
    return {1: defined[1]} if len(aurocs) == 2 and defined else defined


def _class_metrics(confusion: np.ndarray, aurocs: Sequence[float | None]) -> list[ClassMetrics]:
    """Return the metrics of each class against all others, from the (K, K) counts by label and prediction."""
    labelled, predicted, right = confusion.sum(axis=1), confusion.sum(axis=0), confusion.diagonal()
    others = confusion.sum() - labelled
    return [
        ClassMetrics(
            sensitivity=_share(right[k], labelled[k]),
            specificity=_share(others[k] - predicted[k] + right[k], others[k]),
            precision=_share(right[k], predicted[k]),
            f1=_share(2 * right[k], labelled[k] + predicted[k]),
            auroc=auroc,
            support=int(labelled[k]),
        )
        for k, auroc in enumerate(aurocs)
    ]


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def _mean(values: Iterable[float | None]) -> float:
    """Return the mean over the classes for which a metric is defined."""
    return float(np.mean([value for value in values if value is not None]))
