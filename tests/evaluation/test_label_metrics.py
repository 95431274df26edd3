"""Metrics of several labels an image, each checked against scikit-learn on the known decisions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from twinbud.evaluation.bootstrap import bootstrap_weights, weighted_average_precisions
from twinbud.evaluation.metrics import EvaluationMetrics, evaluate
from twinbud.evaluation.predictions import Predictions
from twinbud.tasks.multi_label import MultiLabel

NAMES = ("a", "b", "c", "d")


def case(num_images: int = 200, unknown: float = 0.2, **changes: Any) -> Predictions:
    random = np.random.default_rng(0)
    labels = (random.random((num_images, 4)) < [0.5, 0.3, 0.1, 0.05]).astype(np.float32)
    probabilities = (0.3 * labels + random.random((num_images, 4)) * 0.7).round(2)
    labels[random.random(labels.shape) < unknown] = np.nan
    values: dict[str, Any] = {
        "paths": tuple(f"{number}.png" for number in range(num_images)),
        "labels": labels,
        "probabilities": probabilities,
        "classes": NAMES,
        "task": MultiLabel(NAMES, thresholds=(0.5, 0.4, 0.6, 0.7)),
    }
    return Predictions(**{**values, **changes})


def test_point_values_equal_scikit_learn_on_the_known_decisions() -> None:
    predictions = case()
    result = evaluate(predictions, num_bootstrap=0)
    assert predictions.labels is not None
    known = ~np.isnan(predictions.labels)
    columns = [
        (predictions.labels[of, k] == 1, predictions.predicted[of, k] == 1, predictions.probabilities[of, k])
        for k, of in enumerate(known.T)
    ]
    truth, said, scores = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    expected = {
        "accuracy": np.mean(truth == said),
        "balanced_accuracy": np.mean([sk.balanced_accuracy_score(t, s) for t, s, _ in columns]),
        "f1_macro": np.mean([sk.f1_score(t, s) for t, s, _ in columns]),
        "f1_micro": sk.f1_score(truth, said),
        "auroc_macro": np.mean([sk.roc_auc_score(t, p) for t, _, p in columns]),
        "auroc_micro": sk.roc_auc_score(truth, scores),
        "average_precision_macro": np.mean([sk.average_precision_score(t, p) for t, _, p in columns]),
        "average_precision_micro": sk.average_precision_score(truth, scores),
        "mcc": np.mean([sk.matthews_corrcoef(t, s) for t, s, _ in columns]),
        "brier": sk.brier_score_loss(truth, scores),
    }
    assert {name: getattr(result, name) for name in expected} == pytest.approx(expected)
    for (name, row), (t, s, p) in zip(result.per_class.items(), columns, strict=True):
        assert row.sensitivity == pytest.approx(sk.recall_score(t, s)), name
        assert row.specificity == pytest.approx(sk.recall_score(~t, ~s))
        assert row.precision == pytest.approx(sk.precision_score(t, s))
        assert (row.support, row.num_known) == (t.sum(), len(t))
        assert row.average_precision == pytest.approx(sk.average_precision_score(t, p))
    assert (result.lead, result.confusion_matrix) == ("auroc_macro", ())


@pytest.mark.parametrize("decimals", [1, 6])
def test_weighted_average_precision_is_that_of_repeated_images(decimals: int) -> None:
    random = np.random.default_rng(0)
    positive, scores = random.random(50) < 0.3, random.random(50).round(decimals)
    weights = random.integers(0, 4, (10, 50)).astype(float)
    expected = [
        sk.average_precision_score(np.repeat(positive, row), np.repeat(scores, row)) for row in weights.astype(int)
    ]
    np.testing.assert_allclose(weighted_average_precisions(positive, scores, weights), expected)


def test_intervals_equal_metrics_of_resampled_images() -> None:
    predictions = case(60, unknown=0.1)
    result = evaluate(predictions, num_bootstrap=20, seed=3)
    assert predictions.labels is not None
    replicates: list[EvaluationMetrics] = []
    for weights in np.concatenate(list(bootstrap_weights(np.arange(60), 20, 60, 3))).astype(int):
        labels, probabilities = (
            np.repeat(part, weights, axis=0) for part in (predictions.labels, predictions.probabilities)
        )
        replicates.append(evaluate(case(60, labels=labels, probabilities=probabilities), num_bootstrap=0))
    assert set(result.confidence_intervals) == set(result.texts)
    for name, interval in result.confidence_intervals.items():
        values = [getattr(replicate, name) for replicate in replicates]
        assert interval == pytest.approx(
            np.percentile([value for value in values if value is not None], [2.5, 97.5])
        ), name


def test_a_label_without_images_leaves_its_values_undefined() -> None:
    predictions = case()
    assert predictions.labels is not None
    labels = predictions.labels.copy()
    labels[:, 3], labels[:, 2] = 0, np.nan
    result = evaluate(case(labels=labels), num_bootstrap=10)
    absent, unknown = result.per_class["d"], result.per_class["c"]
    assert (absent.sensitivity, absent.auroc, absent.average_precision, absent.support) == (None, None, None, 0)
    assert (unknown.specificity, unknown.f1, unknown.num_known) == (None, None, 0)
    assert result.macro_over["auroc_macro"] == ("a", "b")
    assert EvaluationMetrics.from_json(result.to_json()) == result


def test_metrics_of_patients_count_what_any_image_shows() -> None:
    patients = tuple(str(number // 2) for number in range(200))
    result = evaluate(case(patient_ids=patients), num_bootstrap=10, aggregate="max")
    assert result.patients is not None
    predictions = case()
    assert predictions.labels is not None
    shown = (predictions.labels.reshape(100, 2, 4) == 1).any(axis=1)
    assert [row.support for row in result.patients.per_class.values()] == shown.sum(axis=0).tolist()
