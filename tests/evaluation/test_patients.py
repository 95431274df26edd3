"""Metrics of patients: what their images' probabilities and labels become."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from twinbud.evaluation.metrics import EvaluationMetrics, evaluate
from twinbud.evaluation.patients import predictions_of_patients
from twinbud.evaluation.predictions import Predictions

PROBABILITIES = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8], [0.6, 0.4]])
LABELS = np.array([0, 0, 1, 1, 1])


def predictions(
    patients: tuple[str | None, ...], labels: np.ndarray = LABELS, probabilities: np.ndarray = PROBABILITIES
) -> Predictions:
    return Predictions(
        paths=tuple(f"{number}.png" for number in range(len(labels))),
        labels=labels,
        probabilities=probabilities,
        classes=("benign", "malignant"),
        patient_ids=patients,
    )


def test_the_mean_of_the_probabilities_is_that_of_a_patient() -> None:
    found = predictions_of_patients(predictions(("p", "p", "q", "q", "q")), "mean")
    assert found is not None
    np.testing.assert_allclose(found.predictions.probabilities, [[0.65, 0.35], [1.1 / 3, 1.9 / 3]])
    assert found.predictions.labels is not None
    assert found.predictions.labels.tolist() == [0, 1]


def test_the_maximum_is_taken_for_each_class_and_sums_to_one() -> None:
    found = predictions_of_patients(predictions(("p", "p", "q", "q", "q")), "max")
    assert found is not None
    np.testing.assert_allclose(found.predictions.probabilities, [[0.9 / 1.5, 0.6 / 1.5], [0.6 / 1.4, 0.8 / 1.4]])


def test_noisy_or_is_the_chance_that_any_image_shows_the_class() -> None:
    found = predictions_of_patients(predictions(("p", "p", "q", "q", "q")), "noisy-or")
    assert found is not None
    first = np.array([1 - 0.1 * 0.6, 1 - 0.9 * 0.4])
    np.testing.assert_allclose(found.predictions.probabilities[0], first / first.sum())


def test_spellings_of_one_patient_are_joined_and_unknown_patients_stay_alone() -> None:
    found = predictions_of_patients(predictions(("001", "1.0", None, None, "2")), "mean")
    assert found is not None
    assert found.predictions.paths == ("1", "2.png", "3.png", "2")


def test_images_of_unknown_patients_are_resampled_alone_whatever_their_names() -> None:
    named = replace(predictions(("p", "p", None, None, None)), paths=("0", "1", "img_1.png", "img_01.png", "p"))
    metrics = evaluate(named, num_bootstrap=0, aggregate="mean")
    assert metrics.patients is not None
    assert metrics.patients.num_bootstrap_units == metrics.patients.num_test == 4


def test_patients_whose_images_contradict_each_other_are_left_out_and_counted() -> None:
    labels = np.array([0, 1, 1, 1, 1])
    metrics = evaluate(predictions(("p", "p", "q", "q", "r"), labels), num_bootstrap=0, aggregate="mean")
    assert metrics.patients is not None
    assert (metrics.patients.num_test, metrics.patients.num_left_out) == (2, 1)


def test_without_a_patient_of_several_images_there_are_no_metrics_of_patients() -> None:
    assert evaluate(predictions(tuple("abcde")), num_bootstrap=0, aggregate="mean").patients is None
    assert evaluate(predictions((None,) * 5), num_bootstrap=0, aggregate="mean").patients is None


def test_the_metrics_of_patients_are_those_of_their_predictions_and_those_of_images_stay() -> None:
    random = np.random.default_rng(0)
    first = random.integers(2, size=40)
    labels = np.repeat(first, 3)
    positive = (0.3 * labels + random.random(120) * 0.7).clip(0.01, 0.99)
    made = predictions(
        tuple(str(number) for number in np.repeat(np.arange(40), 3)), labels, np.stack([1 - positive, positive], 1)
    )
    metrics = evaluate(made, num_bootstrap=50, aggregate="mean")
    assert metrics.patients is not None
    expected = accuracy_score(first, positive.reshape(40, 3).mean(axis=1) > 0.5)
    assert metrics.patients.accuracy == pytest.approx(expected)
    assert (metrics.patients.bootstrap_unit, metrics.patients.num_bootstrap_units) == ("patient", 40)
    assert metrics.patients.confidence_intervals["accuracy"] is not None
    alone = evaluate(made, num_bootstrap=50)
    assert {**vars(metrics), "patients": None} == vars(alone)
    assert EvaluationMetrics.from_json(metrics.to_json()) == metrics
