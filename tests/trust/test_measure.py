"""Calibration errors, coverage, operating points and net benefit, against independent sources."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss, roc_auc_score

from twinbud.evaluation.metrics import evaluate
from twinbud.evaluation.predictions import Predictions
from twinbud.tasks.multi_label import MultiLabel
from twinbud.trust.measure import measure_calibration, measure_coverage
from twinbud.trust.novelty import fit_novelty, novelty_p_value, novelty_threshold
from twinbud.trust.operating_points import choose_points, measure_point, net_benefit
from twinbud.trust.report import broken_promises, measure_trust

CLASSES = ("a", "b", "c")


def predictions(num_images: int, *, sharpness: float = 1.0, seed: int = 0) -> Predictions:
    random = np.random.default_rng(seed)
    logits = random.normal(scale=1.5, size=(num_images, 3)).astype(np.float32)
    labels = np.array([random.choice(3, p=row / row.sum()) for row in softmax(logits.astype(float), axis=1)])
    paths = tuple(f"{number}.png" for number in range(num_images))
    return Predictions.from_logits(logits * np.float32(sharpness), paths=paths, classes=CLASSES, labels=labels)


def test_exact_probabilities_have_the_error_of_chance() -> None:
    calibration = measure_calibration(predictions(3000), np.arange(3000), num_bootstrap=50)
    assert calibration.ece.value < calibration.ece_chance_limit
    assert calibration.ece_by_chance < calibration.ece_chance_limit < 0.05


def test_overconfident_probabilities_have_a_larger_error_than_chance() -> None:
    calibration = measure_calibration(predictions(500, sharpness=3), np.arange(500), num_bootstrap=50)
    assert calibration.ece.value > 2 * calibration.ece_chance_limit
    assert calibration.ece.interval is not None
    assert calibration.ece.interval[0] < calibration.ece.value < calibration.ece.interval[1]


def test_the_adaptive_error_is_that_of_scikit_learns_quantile_bins() -> None:
    shown = predictions(1500, sharpness=2)
    assert shown.labels is not None
    is_right = shown.predicted == shown.labels
    accuracy, confidence = calibration_curve(is_right, shown.confidence, n_bins=15, strategy="quantile")
    ours = measure_calibration(shown, np.arange(1500), num_bootstrap=0).ece_adaptive.value
    assert ours == pytest.approx(np.abs(accuracy - confidence).mean(), abs=1e-3)


def test_the_classwise_error_is_the_mean_of_each_class_against_the_rest() -> None:
    shown = predictions(400, sharpness=2)
    assert shown.labels is not None
    errors = []
    for k in range(3):
        probability, is_class = shown.probabilities[:, k], shown.labels == k
        bins = np.minimum((probability * 15 - 1e-12).astype(int), 14)
        errors.append(
            sum(abs((is_class[bins == b] - probability[bins == b]).sum()) for b in range(15)) / len(probability)
        )
    ours = measure_calibration(shown, np.arange(400), num_bootstrap=0).ece_classwise.value
    assert ours == pytest.approx(np.mean(errors), rel=1e-9)


def test_labels_that_are_unknown_do_not_count_in_any_error() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(60, 3)).astype(np.float32)
    labels = (random.random((60, 3)) < 0.4).astype(np.float32)
    task, names = MultiLabel(CLASSES), tuple(f"{number}" for number in range(60))
    whole = Predictions.from_logits(logits[:40], paths=names[:40], classes=CLASSES, labels=labels[:40], task=task)
    labels[40:] = np.nan
    more = Predictions.from_logits(logits, paths=names, classes=CLASSES, labels=labels, task=task)
    one = measure_calibration(whole, np.arange(40), num_bootstrap=0)
    other = measure_calibration(more, np.arange(60), num_bootstrap=0)
    for name in ("ece", "ece_classwise", "nll", "brier"):
        assert getattr(one, name).value == pytest.approx(getattr(other, name).value)


def test_errors_of_several_labels_are_those_of_the_metrics_whatever_the_thresholds() -> None:
    random = np.random.default_rng(0)
    labels = (random.random((60, 3)) < 0.4).astype(np.float32)
    labels[random.random((60, 3)) < 0.3] = np.nan
    shown = Predictions.from_logits(
        random.normal(size=(60, 3)).astype(np.float32), paths=tuple(map(str, range(60))), classes=CLASSES,
        labels=labels, task=MultiLabel(CLASSES, thresholds=(0.2, 0.5, 0.9)),
    )  # fmt: skip
    calibration, metrics = measure_calibration(shown, np.arange(60), num_bootstrap=0), evaluate(shown, num_bootstrap=0)
    assert (calibration.ece.value, calibration.brier.value) == pytest.approx((metrics.ece, metrics.brier))
    is_known = ~np.isnan(labels)
    loss = log_loss(labels[is_known], shown.probabilities[is_known], labels=[0, 1])
    assert calibration.nll.value == pytest.approx(loss)


def test_coverage_counts_the_sets_with_the_right_class() -> None:
    sets = np.array([[True, False, False], [True, True, False], [False, True, True], [True, True, True]])
    shown = Predictions(
        paths=("1", "2", "3", "4"), labels=np.array([0, 2, 1, 2]), probabilities=np.full((4, 3), 1 / 3),
        classes=CLASSES, sets=sets,
    )  # fmt: skip
    coverage = measure_coverage(shown, np.arange(4), 0.9, num_bootstrap=20)
    assert coverage.covered.value == 0.75
    assert coverage.per_class == {"a": 1.0, "b": 1.0, "c": 0.5}
    assert (coverage.mean_size, coverage.sizes) == (2.0, (1, 2, 1))


def test_each_operating_point_is_the_best_of_all_thresholds() -> None:
    random = np.random.default_rng(1)
    is_positive = random.random(300) < 0.3
    probability = np.clip(0.3 + 0.3 * is_positive + random.normal(scale=0.2, size=300), 0, 1)
    rows = []
    for threshold in [*np.unique(probability), 2.0]:
        chosen = probability >= threshold
        rows.append((chosen[is_positive].mean(), (~chosen)[~is_positive].mean()))
    points = choose_points(is_positive, probability)
    assert points["specificity 0.95"].sensitivity == pytest.approx(max(s for s, p in rows if p >= 0.95))
    assert points["sensitivity 0.95"].specificity == pytest.approx(max(p for s, p in rows if s >= 0.95))
    youden = points["youden"]
    assert youden.sensitivity + youden.specificity == pytest.approx(max(s + p for s, p in rows))
    for point in points.values():
        again = measure_point(point.threshold, is_positive, probability, np.arange(300), num_bootstrap=10, seed=0)
        assert (again.sensitivity, again.specificity) == pytest.approx((point.sensitivity, point.specificity))


def test_of_equally_specific_thresholds_the_most_sensitive_is_chosen() -> None:
    is_positive, probability = np.repeat([True, False], 40), np.linspace(1, 0, 80)
    for point in choose_points(is_positive, probability).values():
        assert (point.sensitivity, point.specificity) == (1.0, 1.0)


@pytest.mark.parametrize("num_values", [1, 10, 1000])
def test_the_roc_curve_has_the_area_of_scikit_learn_also_with_equal_probabilities(num_values: int) -> None:
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], 200)
    scores = np.round((random.random(400) + 0.2 * labels) / 1.2 * num_values) / num_values / 2
    shown = Predictions(
        paths=tuple(map(str, range(400))), labels=labels, probabilities=np.stack([1 - scores, scores], axis=1),
        classes=("a", "b"),
    )  # fmt: skip
    trust: Any = SimpleNamespace(points={}, sets=None)
    curve = measure_trust(trust, shown, shown, seed=0, num_bootstrap=0).roc_curves["b"]
    area = np.trapezoid(curve.sensitivity, curve.false_positive_rate)
    assert area == pytest.approx(roc_auc_score(labels, scores), abs=0.005)


def test_a_class_without_positive_images_has_no_operating_point() -> None:
    assert choose_points(np.zeros(5, bool), np.linspace(0, 1, 5)) == {}


def test_the_interval_of_an_operating_point_resamples_patients() -> None:
    is_positive, probability = np.ones(40, bool), np.r_[np.zeros(20), np.ones(20)]
    options = {"num_bootstrap": 300, "seed": 0}
    images = measure_point(0.5, is_positive, probability, np.arange(40), **options).sensitivity_interval
    two_patients = measure_point(0.5, is_positive, probability, np.repeat([0, 1], 20), **options)
    assert images is not None
    assert 0.3 < images[0] < 0.5 < images[1] < 0.7
    assert two_patients.sensitivity_interval == (0.0, 1.0)
    assert two_patients.specificity is None


def test_images_of_one_patient_have_no_intervals() -> None:
    shown = replace(predictions(30), sets=np.ones((30, 3), bool))
    assert measure_calibration(shown, np.zeros(30, int)).ece.interval is None
    assert measure_coverage(shown, np.zeros(30, int), 0.9).covered.interval is None
    point = measure_point(0.5, np.arange(30) < 9, np.linspace(0, 1, 30), np.zeros(30, int), num_bootstrap=9, seed=0)
    assert (point.sensitivity_interval, point.specificity_interval) == (None, None)


def test_net_benefit_is_that_of_vickers_and_elkin() -> None:
    is_positive = np.array([True, True, False, False, False])
    probability = np.array([0.9, 0.3, 0.4, 0.2, 0.1])
    # at 0.25: 2 true and 1 false positive of 5
    assert net_benefit(is_positive, probability, np.array([0.25])) == pytest.approx([2 / 5 - 1 / 5 * 0.25 / 0.75])
    assert net_benefit(is_positive, np.ones(5), np.array([0.0])) == pytest.approx([0.4])


def test_the_novelty_score_is_the_distance_that_scipy_computes() -> None:
    from scipy.spatial.distance import mahalanobis
    from sklearn.covariance import LedoitWolf

    random = np.random.default_rng(0)
    classes = np.repeat([0, 1], 30)
    features = (random.normal(size=(60, 4)) * [1, 2, 3, 0.5] + classes[:, None] * 4).astype(np.float32)
    new = random.normal(scale=4, size=(10, 4)).astype(np.float32)
    means = np.stack([features[classes == k].mean(axis=0) for k in (0, 1)]).astype(float)
    covariance = LedoitWolf(assume_centered=True).fit(features.astype(float) - means[classes]).covariance_
    inverse = np.linalg.inv(covariance)
    expected = [min(mahalanobis(row, mean, inverse) ** 2 for mean in means) for row in new.astype(float)]
    assert fit_novelty(features, classes).scores(new) == pytest.approx(expected, rel=1e-4)


def test_novel_images_score_higher_than_new_images_of_the_same_kind() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(80, 16)).astype(np.float32)
    novelty = fit_novelty(features, np.repeat([0, 1], 40))
    same, other = (random.normal(loc, size=(200, 16)).astype(np.float32) for loc in (0, 2))
    scores = np.r_[novelty.scores(same), novelty.scores(other)]
    assert roc_auc_score(np.repeat([0, 1], 200), scores) > 0.95


@pytest.mark.parametrize(("count", "position"), [(1, 1), (10, 10), (19, 19), (39, 38), (1000, 951)])
def test_the_novelty_threshold_accepts_95_percent_of_new_images_like_these(count: int, position: int) -> None:
    assert novelty_threshold(np.arange(1, count + 1)[::-1].astype(float)) == position


@pytest.mark.parametrize("num_scores", [10, 20, 48, 300])
def test_images_like_these_are_called_unlike_in_one_of_a_hundred_draws_at_most(num_scores: int) -> None:
    random = np.random.default_rng(0)
    p_values: list[float] = []
    for _ in range(1500):
        threshold = novelty_threshold(random.random(num_scores))
        p_values.append(novelty_p_value(int((random.random(240) > threshold).sum()), 240, num_scores))
    assert np.mean(np.array(p_values) < 0.01) < 0.02
    assert np.mean(np.array(p_values) < 0.5) > 0.4


def test_many_images_beyond_the_threshold_are_told_with_the_expected_share() -> None:
    calibration = SimpleNamespace(ece=SimpleNamespace(value=0.0), ece_chance_limit=0.1)
    report: Any = SimpleNamespace(
        after=calibration, coverage=None, num_novel=60, num_images=100, trust=SimpleNamespace(num_images=9)
    )
    assert broken_promises(report) == (
        "60.0% of these images are unlike those of the training, where 10% would be expected",
    )


def test_features_that_never_vary_give_finite_scores() -> None:
    features = np.zeros((10, 3), dtype=np.float32)
    assert np.isfinite(fit_novelty(features, np.zeros(10, dtype=int)).scores(features + 1)).all()


def test_prediction_sets_that_contain_too_few_right_classes_are_told() -> None:
    covered = SimpleNamespace(value=0.85, interval=(0.82, 0.88))
    calibration = SimpleNamespace(ece=SimpleNamespace(value=0.0), ece_chance_limit=0.1)
    coverage, trust = SimpleNamespace(covered=covered, wanted=0.9), SimpleNamespace(num_images=50)
    report: Any = SimpleNamespace(after=calibration, coverage=coverage, num_novel=0, num_images=100, trust=trust)
    assert broken_promises(report) == (
        "the prediction sets contain the right class for only 85.0% of these images (95 % interval 82.0% to 88.0%); "
        "90% was asked for",
    )
