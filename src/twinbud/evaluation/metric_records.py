"""The metrics of one set of labelled images, as records that ``metrics.json`` and reports share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

from twinbud.config.task import Aggregate, TaskName
from twinbud.core.typed_json import from_json, to_json
from twinbud.evaluation.bootstrap import Interval
from twinbud.evaluation.calibration import ReliabilityBin


def _metric(label: str, meaning: str, default: Any = MISSING) -> Any:
    """Declare a metric with its name and explanation for readers of a report."""
    return field(metadata={"label": label, "meaning": meaning}, default=default)


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
    f1_micro: float | None = _metric("Micro F1", "over all decisions, image by label, together", default=None)
    """In [0, 1], of several labels an image."""
    auroc_micro: float | None = _metric("Micro AUROC", "over all decisions together", default=None)
    """In [0, 1], of several labels an image."""
    average_precision_macro: float | None = _metric(
        "Average precision", "mean precision over the recall, averaged over the labels", default=None
    )
    """In [0, 1], of several labels an image; None also where no label has a positive image."""
    average_precision_micro: float | None = _metric(
        "Micro average precision", "mean precision over the recall, of all decisions together", default=None
    )
    """In [0, 1], of several labels an image."""


POINT_METRICS = tuple(metric.name for metric in fields(PointMetrics))
_LEADS: Mapping[TaskName, str] = {"ordinal": "kappa", "multi-label": "auroc_macro"}
_LABEL_TEXTS = {
    "accuracy": ("Accuracy", "share of the known decisions, image by label, that are right"),
    "balanced_accuracy": ("Balanced accuracy", "mean of sensitivity and specificity, averaged over the labels"),
    "f1_macro": ("Macro F1", "at the threshold of each label, averaged over the labels"),
    "auroc_macro": ("Macro AUROC", "averaged over the labels; 0.5 is chance, 1 is perfect"),
    "mcc": ("Matthews correlation", "averaged over the labels; 0 is chance, 1 is perfect"),
    "ece": ("Calibration error", "ECE of all decisions, 15 bins: confidence against accuracy; 0 is best"),
    "brier": ("Brier score", "squared error of the probabilities, mean of all decisions; 0 is best, 1 is worst"),
}
"""What the metrics mean where an image has several labels."""
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
    average_precision: float | None = None
    """Of several labels an image; None also without images of the label, and likewise below."""
    threshold: float | None = None
    """From this probability on the label is predicted, in [0, 1]."""
    num_known: int | None = None
    """Number of images of which it is known whether they show the label."""


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
    task: TaskName | None = None
    """What was asked of the images; None, and absent from the JSON, for one class an image."""
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
        return max(supports, default=1) / min(supports, default=1)

    @property
    def lead(self) -> str:
        """Name of the metric that a report shows first."""
        if self.task is not None:
            return _LEADS[self.task]
        return "balanced_accuracy" if self.imbalance >= IMBALANCE else "accuracy"

    @property
    def texts(self) -> Mapping[str, tuple[str, str]]:
        """Label and meaning of each metric that these images have, by name, in the order of a report."""
        known = {metric.name: (metric.metadata["label"], metric.metadata["meaning"]) for metric in fields(TaskMetrics)}
        known |= _LABEL_TEXTS if self.task == "multi-label" else {}
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
