"""Metrics of predictions, with 95 % intervals. Pure functions.

Point values come from scikit-learn. An undefined value is None, never NaN or 0. A macro value is the mean over the
classes for which it is defined; ``macro_over`` names them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

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

from twinbud.config.task import Aggregate
from twinbud.core.errors import TwinbudError
from twinbud.core.typed_json import from_json, to_json
from twinbud.data.identity import patient_key
from twinbud.evaluation.bootstrap import Interval, confidence_intervals, unit_of_each_image
from twinbud.evaluation.calibration import (
    ReliabilityBin,
    brier_per_image,
    expected_calibration_error,
    reliability_bins,
)
from twinbud.evaluation.order import order_metrics
from twinbud.evaluation.patients import predictions_of_patients
from twinbud.evaluation.predictions import Predictions


def _metric(label: str, meaning: str, **default: None) -> Any:
    """Declare a metric with its name and explanation for readers of a report."""
    return field(metadata={"label": label, "meaning": meaning}, **default)


@dataclass(frozen=True, kw_only=True)
class PointMetrics:
    """The metrics that have an interval; the metadata of each field holds its label and meaning."""

    accuracy: float = _metric("Accuracy", "share of images classified correctly")
    """In [0, 1]."""
    balanced_accuracy: float = _metric("Balanced accuracy", "mean sensitivity of the classes")
    """In [0, 1], over the classes in the labels, as in scikit-learn."""
    f1_macro: float = _metric("Macro F1", "harmonic mean of precision and sensitivity, averaged over the classes")
    """In [0, 1], over the classes in the labels or the predictions."""
    auroc_macro: float | None = _metric("Macro AUROC", "one class against the rest; 0.5 is chance, 1 is perfect")
    """In [0, 1], one-vs-rest; with two classes, the AUROC of the second. None if the labels are of one class."""
    mcc: float = _metric("Matthews correlation", "0 is chance, 1 is perfect")
    """In [-1, 1]; 0 for constant predictions."""
    ece: float = _metric("Calibration error", "ECE, 15 bins: confidence against accuracy; 0 is best")
    """In [0, 1], see ``expected_calibration_error``."""
    brier: float = _metric("Brier score", "squared error of the probabilities; 0 is best, 2 is worst")
    """In [0, 2], see ``brier_per_image``; mean over the images."""


@dataclass(frozen=True, kw_only=True)
class TaskMetrics(PointMetrics):
    """Further metrics with an interval, of some tasks only; None, and absent from the JSON, for the others."""

    kappa: float | None = _metric(
        "Quadratic-weighted kappa", "agreement of grades beyond chance: 0 is chance, 1 is perfect", default=None
    )
    """In [-1, 1], of grades; None also where labels and predictions are all of one grade."""
    mae: float | None = _metric("Mean absolute error", "distance of the grade from its label, in grades", default=None)
    """In [0, C - 1], of grades."""
    within_one: float | None = _metric("Within one grade", "share of images at most one grade off", default=None)
    """In [0, 1], of grades."""


POINT_METRICS = tuple(metric.name for metric in fields(PointMetrics))
IMBALANCE = 5.0
"""From this ratio of the largest to the smallest class on, the accuracy says little about the small class."""


@dataclass(frozen=True, kw_only=True)
class ClassMetrics:
    """Metrics of one class against the rest, in [0, 1]; None where undefined."""

    sensitivity: float | None
    """Recall; None without images of the class."""
    specificity: float | None
    """None without images of another class."""
    precision: float | None
    """None if the class is never predicted."""
    f1: float | None
    """None if the class is neither in the labels nor in the predictions."""
    auroc: float | None
    """None without images of the class or without images of another class."""
    support: int
    """Number of images of the class."""


@dataclass(frozen=True, kw_only=True)
class EvaluationMetrics(TaskMetrics):
    """All metrics of one set of labelled images."""

    num_test: int
    """Number of images."""
    macro_over: Mapping[str, tuple[str, ...]]
    """For ``balanced_accuracy``, ``f1_macro`` and ``auroc_macro``: the classes that the mean is over."""
    per_class: Mapping[str, ClassMetrics]
    """By class name, in the order of the model's outputs."""
    confusion_matrix: tuple[tuple[int, ...], ...]
    """(K, K) numbers of images: rows are labels, columns are predictions."""
    reliability: tuple[ReliabilityBin, ...]
    """The 15 bins behind ``ece``."""
    confidence_intervals: Mapping[str, Interval | None]
    """95 % percentile bootstrap interval of each metric of ``PointMetrics``.

    None where undefined, with a single unit, or without bootstrap. Resampling adds noise to every bin, so that the
    interval of ``ece`` is biased upwards.
    """
    bootstrap_unit: Literal["image", "patient"]
    """What the bootstrap resamples."""
    num_bootstrap_units: int
    """Number of patients (or images)."""
    num_bootstrap: int
    """Number of replicates."""
    patients: EvaluationMetrics | None = None
    """Of the patients instead of their images; None where no patient has several."""
    aggregate: Aggregate | None = None
    """How the probabilities of each patient's images were joined; None but in ``patients``."""
    num_left_out: int | None = None
    """Patients without a label of their own, since those of their images differ; None but in ``patients``."""

    @property
    def imbalance(self) -> float:
        """Number of test images of the largest class, divided by that of the smallest that has any."""
        supports = [row.support for row in self.per_class.values() if row.support]
        return max(supports) / min(supports)

    @property
    def lead(self) -> str:
        """Name of the metric that a report shows first."""
        if self.within_one is not None:
            return "kappa"
        return "balanced_accuracy" if self.imbalance >= IMBALANCE else "accuracy"

    @property
    def texts(self) -> Mapping[str, tuple[str, str]]:
        """Label and meaning of each metric that these images have, by name, in the order of a report."""
        known = {metric.name: (metric.metadata["label"], metric.metadata["meaning"]) for metric in fields(TaskMetrics)}
        shown = {name: text for name, text in known.items() if name in POINT_METRICS or getattr(self, name) is not None}
        return {self.lead: shown.pop(self.lead), **shown}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the model's outputs."""
        return tuple(self.per_class)

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON values."""
        return to_json(self)

    @classmethod
    def from_json(cls, content: Any) -> EvaluationMetrics:
        """Convert back from plain JSON values.

        Raises:
            ValueError: A missing key or a value of another type.
        """
        return from_json(cls, content, "metrics")


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
    predicted, classes = predictions.predicted, predictions.classes
    confusion = confusion_matrix(labels, predicted, labels=np.arange(len(classes)))
    in_labels, in_either = confusion.sum(1) > 0, (confusion.sum(0) + confusion.sum(1)) > 0
    aurocs = _aurocs(labels, predictions.probabilities)
    averaged = _averaged_aurocs(aurocs)
    patients = [patient_key(patient) for patient in predictions.patient_ids or ()]
    by_patient = any(patient is not None for patient in patients)
    unit_of_image = unit_of_each_image(patients if by_patient else None, len(labels))
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
        balanced_accuracy=float(recall_score(labels, predicted, labels=np.flatnonzero(in_labels), average="macro")),
        f1_macro=float(f1_score(labels, predicted, labels=np.flatnonzero(in_either), average="macro")),
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
        per_class={name: _class_metrics(labels == k, predicted == k, aurocs[k]) for k, name in enumerate(classes)},
        confusion_matrix=tuple(tuple(row) for row in confusion.tolist()),
        reliability=reliability_bins(predictions.confidence, predicted == labels),
        confidence_intervals=intervals,
        bootstrap_unit="patient" if by_patient else "image",
        num_bootstrap_units=int(unit_of_image.max()) + 1,
        num_bootstrap=num_bootstrap,
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


def _class_metrics(is_labelled: np.ndarray, is_predicted: np.ndarray, auroc: float | None) -> ClassMetrics:
    either = (is_labelled | is_predicted).any()
    return ClassMetrics(
        sensitivity=float(recall_score(is_labelled, is_predicted)) if is_labelled.any() else None,
        specificity=float(recall_score(~is_labelled, ~is_predicted)) if not is_labelled.all() else None,
        precision=float(precision_score(is_labelled, is_predicted)) if is_predicted.any() else None,
        f1=float(f1_score(is_labelled, is_predicted)) if either else None,
        auroc=auroc,
        support=int(is_labelled.sum()),
    )
