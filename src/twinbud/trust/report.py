"""How trustworthy the answers of a calibrated model are on its test part: what its page shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_curve

from twinbud.evaluation.bootstrap import bootstrap_units
from twinbud.evaluation.predictions import Predictions
from twinbud.trust.measure import Calibration, Coverage, measure_calibration, measure_coverage
from twinbud.trust.novelty import expected_share, novelty_p_value
from twinbud.trust.operating_points import Criterion, MeasuredPoint, measure_point, net_benefit
from twinbud.trust.record import Trust

_SURPRISING = 0.01
NET_BENEFIT_THRESHOLDS = tuple(np.linspace(0.01, 0.99, 50).round(4).tolist())
"""Probabilities from which on an image is treated, in decision curves."""


@dataclass(frozen=True, kw_only=True)
class DecisionCurve:
    """Net benefit at each of ``NET_BENEFIT_THRESHOLDS`` of treating the images that the model says are of a class."""

    model: tuple[float, ...]
    treat_all: tuple[float, ...]
    """Of treating every image; treating none has a net benefit of 0."""


@dataclass(frozen=True, kw_only=True)
class RocCurve:
    """The start of a ROC curve, and its points at 101 equal steps of the false positive rate."""

    false_positive_rate: tuple[float, ...]
    sensitivity: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class TrustReport:
    """Measurements on labelled images that neither the model nor its calibration has learned from."""

    trust: Trust
    before: Calibration
    """At temperature 1."""
    after: Calibration
    """At the temperature of ``trust``."""
    coverage: Coverage | None = None
    """None for several labels an image."""
    points: Mapping[str, Mapping[Criterion, MeasuredPoint]]
    """By class."""
    roc_curves: Mapping[str, RocCurve]
    """By class; none for a class of no images, or of all."""
    decision_curves: Mapping[str, DecisionCurve]
    """By class, for calibrated probabilities."""
    num_novel: int
    """Number of images beyond the novelty threshold."""
    num_images: int


def measure_trust(
    trust: Trust,
    before: Predictions,
    after: Predictions,
    *,
    seed: int,
    num_bootstrap: int = 1000,
) -> TrustReport:
    """Measure everything that ``trust`` claims on labelled images.

    Args:
        trust: The claims.
        before: Predictions of the network alone.
        after: The same with the trust applied.
        seed: Seed of the random stream "bootstrap".
        num_bootstrap: Number of replicates.
    """
    _, unit_of_image = bootstrap_units(after)
    options = {"num_bootstrap": num_bootstrap, "seed": seed}
    points: dict[str, dict[Criterion, MeasuredPoint]] = {}
    roc_curves: dict[str, RocCurve] = {}
    decision_curves: dict[str, DecisionCurve] = {}
    for k, name in enumerate(after.classes):
        probability_N, is_positive_N, is_known_N = against_rest(after, k)
        known = (is_positive_N[is_known_N], probability_N[is_known_N])
        if not is_known_N.any():
            continue
        units = np.unique(unit_of_image[is_known_N], return_inverse=True)[1]
        points[name] = {
            criterion: measure_point(point.threshold, *known, units, **options)
            for criterion, point in trust.points.get(name, {}).items()
        }
        if known[0].any() and not known[0].all():
            roc_curves[name] = _roc_curve(*known)
        thresholds_T = np.array(NET_BENEFIT_THRESHOLDS)
        everyone = np.ones(len(known[0]))
        decision_curves[name] = DecisionCurve(
            model=tuple(net_benefit(*known, thresholds_T).tolist()),
            treat_all=tuple(net_benefit(known[0], everyone, thresholds_T).tolist()),
        )
    return TrustReport(
        trust=trust,
        before=measure_calibration(before, unit_of_image, **options),
        after=measure_calibration(after, unit_of_image, **options),
        coverage=measure_coverage(after, unit_of_image, trust.sets.coverage, **options) if trust.sets else None,
        points=points,
        roc_curves=roc_curves,
        decision_curves=decision_curves,
        num_novel=0 if after.is_novel is None else int(after.is_novel.sum()),
        num_images=len(after.paths),
    )


def broken_promises(report: TrustReport) -> tuple[str, ...]:
    """Return a sentence for each claim of the calibration that the images of a report contradict.

    Calibration: the error is larger than that of 97.5 % of as many images with exact probabilities. Coverage: the 95 %
    interval lies below the wanted value. Novelty: more images are beyond the threshold than expected, also if it was
    chosen on few (``novelty_p_value`` < 0.01).
    """
    sentences: list[str] = []
    calibration, coverage = report.after, report.coverage
    if calibration.ece.value > calibration.ece_chance_limit:
        sentences.append(
            "the probabilities are not calibrated on these images: the calibration error is "
            f"{calibration.ece.value:.3f}, that of exact probabilities at most {calibration.ece_chance_limit:.3f}"
        )
    if coverage and coverage.covered.interval and coverage.covered.interval[1] < coverage.wanted:
        low, high = coverage.covered.interval
        sentences.append(
            f"the prediction sets contain the right class for only {coverage.covered.value:.1%} of these images "
            f"(95 % interval {low:.1%} to {high:.1%}); {coverage.wanted:.0%} was asked for"
        )
    num_scores = report.trust.num_images
    if novelty_p_value(report.num_novel, report.num_images, num_scores) < _SURPRISING:
        share, expected = report.num_novel / report.num_images, expected_share(num_scores)
        sentences.append(
            f"{share:.1%} of these images are unlike those of the training, where {expected:.0%} would be expected"
        )
    return tuple(sentences)


def against_rest(predictions: Predictions, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the probability of class k, whether it is true, and whether that is known, of each image: (N,) each."""
    labels = predictions.labels
    assert labels is not None
    if predictions.asked.is_exclusive:
        return predictions.probabilities[:, k], labels == k, np.ones(len(labels), bool)
    return predictions.probabilities[:, k], labels[:, k] == 1, ~np.isnan(labels[:, k])


def _roc_curve(is_positive_N: np.ndarray, probability_N: np.ndarray) -> RocCurve:
    """Equal probabilities of positive and negative images are a straight line, as in the AUROC."""
    false_positive, sensitivity, _ = roc_curve(is_positive_N, probability_N, drop_intermediate=False)
    rates = np.arange(101) / 100
    reached = np.interp(rates, false_positive, sensitivity)  # of equal false positive rates, the last counts
    return RocCurve(false_positive_rate=(0.0, *rates.round(4).tolist()), sensitivity=(0.0, *reached.round(4).tolist()))
