"""Metrics of several labels an image, with 95 % intervals. Pure functions.

Labels of which it is unknown whether an image shows them do not count. Point values come from scikit-learn; an
undefined value is None. A macro value is the mean over the labels for which it is defined.

Shape legend: N images, C labels, M known decisions (pairs of image and label), B replicates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, matthews_corrcoef, roc_auc_score

from twinbud.evaluation.bootstrap import (
    Interval,
    bootstrap_weights,
    mean_of_defined,
    percentiles,
    ratio,
    weighted_aurocs,
    weighted_average_precisions,
)
from twinbud.evaluation.calibration import calibration_gaps, expected_calibration_error, reliability_bins
from twinbud.evaluation.metric_records import ClassMetrics, EvaluationMetrics
from twinbud.evaluation.predictions import Predictions


def evaluate_labels(
    predictions: Predictions, unit_of_image: np.ndarray, units: Mapping[str, Any], *, seed: int
) -> EvaluationMetrics:
    """Compute all metrics of labelled predictions of several labels an image.

    Args:
        predictions: N images with targets (N, C).
        unit_of_image: (N,) index of each image's bootstrap unit.
        units: The fields of the result that describe the bootstrap.
        seed: Seed of the random stream "bootstrap".
    """
    decisions = _Decisions(predictions)
    per_class = {name: decisions.class_metrics(k) for k, name in enumerate(predictions.classes)}
    points = decisions.point_metrics(per_class)
    intervals: dict[str, Interval | None] = dict.fromkeys(points)
    num_bootstrap = units["num_bootstrap"]
    if num_bootstrap > 0 and unit_of_image.max() > 0 and decisions.size:
        size = max(len(unit_of_image), decisions.size)
        blocks = [decisions.replicates(w) for w in bootstrap_weights(unit_of_image, num_bootstrap, size, seed)]
        intervals = {name: percentiles(np.concatenate([block[name] for block in blocks])) for name in blocks[0]}
    return EvaluationMetrics(
        **points,
        num_test=len(predictions.paths),
        macro_over={
            "balanced_accuracy": _defined(per_class, "sensitivity", "specificity"),
            "f1_macro": _defined(per_class, "f1"),
            "auroc_macro": _defined(per_class, "auroc"),
            "average_precision_macro": _defined(per_class, "average_precision"),
        },
        per_class=per_class,
        confusion_matrix=(),
        reliability=reliability_bins(decisions.confidence_M, decisions.is_right_M),
        confidence_intervals=intervals,
        task="multi-label",
        **units,
    )


def _defined(per_class: Mapping[str, ClassMetrics], *names: str) -> tuple[str, ...]:
    return tuple(label for label, row in per_class.items() if all(getattr(row, name) is not None for name in names))


class _Decisions:
    """The known decisions of all images and labels, as arrays that every replicate weights."""

    def __init__(self, predictions: Predictions) -> None:
        labels_NC = predictions.labels
        assert labels_NC is not None, "the images have labels"
        self.thresholds: tuple[float, ...] = predictions.asked.to_json()["thresholds"]
        self.known_NC = ~np.isnan(labels_NC)
        self.shown_NC, self.said_NC = labels_NC == 1, predictions.predicted == 1
        self.scores_NC = predictions.probabilities
        self.image_M, self.label_M = np.nonzero(self.known_NC)
        self.size = len(self.image_M)
        self.shown_M, self.scores_M = self.shown_NC[self.known_NC], self.scores_NC[self.known_NC]
        self.confidence_M = np.maximum(self.scores_M, 1 - self.scores_M)
        self.is_right_M = (self.scores_M >= 0.5) == self.shown_M
        self.brier_M = (self.scores_M - self.shown_M) ** 2

    def class_metrics(self, k: int) -> ClassMetrics:
        """Compute the metrics of one label over its known images."""
        known_N = self.known_NC[:, k]
        shown, said, scores = self.shown_NC[known_N, k], self.said_NC[known_N, k], self.scores_NC[known_N, k]
        hits, support, num_said = int((shown & said).sum()), int(shown.sum()), int(said.sum())
        num_absent = len(shown) - support
        is_both = 0 < support < len(shown)
        return ClassMetrics(
            sensitivity=hits / support if support else None,
            specificity=float((~shown & ~said).sum()) / num_absent if num_absent else None,
            precision=hits / num_said if num_said else None,
            f1=2 * hits / (support + num_said) if support + num_said else None,
            auroc=float(roc_auc_score(shown, scores)) if is_both else None,
            support=support,
            average_precision=float(average_precision_score(shown, scores)) if support else None,
            threshold=float(self.thresholds[k]),
            num_known=len(shown),
        )

    def point_metrics(self, per_class: Mapping[str, ClassMetrics]) -> dict[str, Any]:
        """Return the values of ``TaskMetrics`` that this task has."""
        rows = list(per_class.values())
        both = [
            (r.sensitivity + r.specificity) / 2 for r in rows if r.sensitivity is not None and r.specificity is not None
        ]
        mccs = [
            _correlation(self.shown_NC[known, k], self.said_NC[known, k])
            for k, known in enumerate(self.known_NC.T)
            if known.any()
        ]
        said_M = self.said_NC[self.known_NC]
        is_both = 0 < self.shown_M.sum() < self.size
        chosen = self.shown_M.sum() + said_M.sum()
        return {
            "accuracy": _mean(said_M == self.shown_M) or 0.0,
            "balanced_accuracy": _mean(both) or 0.0,
            "f1_macro": _mean([r.f1 for r in rows if r.f1 is not None]) or 0.0,
            "auroc_macro": _mean([r.auroc for r in rows if r.auroc is not None]),
            "mcc": _mean(mccs) or 0.0,
            "ece": expected_calibration_error(self.confidence_M, self.is_right_M) if self.size else 0.0,
            "brier": _mean(self.brier_M) or 0.0,
            "f1_micro": float(2 * (self.shown_M & said_M).sum() / chosen) if chosen else None,
            "auroc_micro": float(roc_auc_score(self.shown_M, self.scores_M)) if is_both else None,
            "average_precision_macro": _mean([r.average_precision for r in rows if r.average_precision is not None]),
            "average_precision_micro": float(average_precision_score(self.shown_M, self.scores_M))
            if self.shown_M.any()
            else None,
        }

    def replicates(self, weights_BN: np.ndarray) -> dict[str, np.ndarray]:
        """Compute the (B,) values of each metric; NaN where a replicate leaves it undefined."""
        hits, misses, alarms, rejections = (
            weights_BN @ (self.known_NC & (self.shown_NC == shown) & (self.said_NC == said)).astype(np.float64)
            for shown, said in ((True, True), (True, False), (False, True), (False, False))
        )
        total_B = (hits + misses + alarms + rejections).sum(axis=1)
        weights_BM = weights_BN[:, self.image_M]
        spread = np.sqrt((hits + misses) * (hits + alarms) * (rejections + misses) * (rejections + alarms))
        correlation = np.divide(
            hits * rejections - misses * alarms, spread, out=np.zeros_like(spread), where=spread > 0
        )
        is_known_BC = (hits + misses + alarms + rejections) > 0
        gaps_M15 = calibration_gaps(self.confidence_M, self.is_right_M)
        all_hits_B = hits.sum(axis=1)
        return {
            "accuracy": ratio(all_hits_B + rejections.sum(axis=1), total_B),
            "balanced_accuracy": mean_of_defined(
                (ratio(hits, hits + misses) + ratio(rejections, rejections + alarms)) / 2
            ),
            "f1_macro": mean_of_defined(ratio(2 * hits, 2 * hits + misses + alarms)),
            "auroc_macro": mean_of_defined(self._of_each_label(weighted_aurocs, weights_BN)),
            "mcc": mean_of_defined(np.where(is_known_BC, correlation, np.nan)),
            "ece": ratio(np.abs(weights_BM @ gaps_M15).sum(axis=1), total_B),
            "brier": ratio(weights_BM @ self.brier_M, total_B),
            "f1_micro": ratio(2 * all_hits_B, 2 * all_hits_B + misses.sum(axis=1) + alarms.sum(axis=1)),
            "auroc_micro": weighted_aurocs(self.shown_M, self.scores_M, weights_BM),
            "average_precision_macro": mean_of_defined(self._of_each_label(weighted_average_precisions, weights_BN)),
            "average_precision_micro": weighted_average_precisions(self.shown_M, self.scores_M, weights_BM),
        }

    def _of_each_label(
        self, metric: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray], weights_BN: np.ndarray
    ) -> np.ndarray:
        """Return the (B, C) values of a metric of known images; NaN for a label that no image is known to show."""
        values_BC = np.full((len(weights_BN), self.known_NC.shape[1]), np.nan)
        for k, known_N in enumerate(self.known_NC.T):
            if self.shown_NC[known_N, k].any():
                values_BC[:, k] = metric(self.shown_NC[known_N, k], self.scores_NC[known_N, k], weights_BN[:, known_N])
        return values_BC


def _correlation(shown: np.ndarray, said: np.ndarray) -> float:
    """Return Matthews' correlation; 0 where labels and predictions are all the same, as for one class an image."""
    return float(matthews_corrcoef(shown, said)) if len(np.unique([shown, said])) > 1 else 0.0


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None
