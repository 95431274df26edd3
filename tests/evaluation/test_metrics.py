"""Every number is checked against scikit-learn or a few independent lines."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics as sk

from twinbud.core.errors import TwinbudError
from twinbud.core.rng import numpy_stream
from twinbud.core.typed_json import to_json
from twinbud.evaluation.bootstrap import weighted_aurocs
from twinbud.evaluation.metrics import POINT_METRICS, EvaluationMetrics, evaluate
from twinbud.evaluation.predictions import Predictions
from twinbud.tasks.ordinal import Ordinal


def make(labels, probabilities, patients=None):
    labels = np.asarray(labels, dtype=np.int64)
    probabilities = np.asarray(probabilities, dtype=np.float64)
    return Predictions(
        paths=tuple(f"{i}.png" for i in range(len(labels))),
        labels=labels,
        probabilities=probabilities,
        classes=tuple("abcdefgh"[: probabilities.shape[1]]),
        patient_ids=patients,
    )


def random_case(num_images=300, num_classes=4, seed=0, signal=1.5, decimals=None):
    random = np.random.default_rng(seed)
    labels = random.integers(num_classes, size=num_images)
    logits = random.normal(size=(num_images, num_classes))
    logits[np.arange(num_images), labels] += signal
    if decimals is not None:
        logits = logits.round(decimals)  # ties
    probabilities = np.exp(logits)
    return labels, probabilities / probabilities.sum(axis=1, keepdims=True)


def reference_ece(labels, probabilities):
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    total = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return total


@pytest.mark.parametrize("num_classes", [2, 3, 8])
@pytest.mark.parametrize("decimals", [None, 0])
def test_point_values_equal_scikit_learn(num_classes, decimals):
    labels, probabilities = random_case(num_classes=num_classes, decimals=decimals)
    predicted = probabilities.argmax(1)
    result = evaluate(make(labels, probabilities), num_bootstrap=0)
    scores = probabilities[:, 1] if num_classes == 2 else probabilities
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "f1_macro": sk.f1_score(labels, predicted, average="macro"),
        "auroc_macro": sk.roc_auc_score(labels, scores, multi_class="ovr", average="macro"),
        "mcc": sk.matthews_corrcoef(labels, predicted),
        "ece": reference_ece(labels, probabilities),
        "brier": np.mean(((np.eye(num_classes)[labels] - probabilities) ** 2).sum(1)),
    }
    assert {name: getattr(result, name) for name in expected} == pytest.approx(expected, abs=1e-12)
    assert result.confusion_matrix == tuple(map(tuple, sk.confusion_matrix(labels, predicted).tolist()))
    for k, row in enumerate(result.per_class.values()):
        truth, said = labels == k, predicted == k
        assert to_json(row) == pytest.approx(
            {
                "sensitivity": sk.recall_score(truth, said),
                "specificity": sk.recall_score(~truth, ~said),
                "precision": sk.precision_score(truth, said),
                "f1": sk.f1_score(truth, said),
                "auroc": sk.roc_auc_score(truth, probabilities[:, k]),
                "support": truth.sum(),
            }
        )


def test_reliability_bins_add_up_to_ece_and_to_all_images():
    labels, probabilities = random_case()
    result = evaluate(make(labels, probabilities), num_bootstrap=0)
    filled = [row for row in result.reliability if row.count]
    assert sum(row.count for row in filled) == len(labels)
    gaps = sum(row.count * abs((row.accuracy or 0) - (row.confidence or 0)) for row in filled)
    assert gaps / len(labels) == pytest.approx(result.ece)


def test_absent_class_is_null_and_left_out_of_macro_values_that_need_it():
    result = evaluate(make([0, 0, 1, 1], [[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.2, 0.7, 0.1], [0.3, 0.6, 0.1]]))
    absent = result.per_class["c"]
    assert absent.sensitivity is None
    assert absent.auroc is None
    assert absent.precision == 0
    assert absent.f1 == 0
    assert absent.specificity == 0.75
    assert result.balanced_accuracy == 0.75
    assert result.f1_macro == pytest.approx(sk.f1_score([0, 0, 1, 1], [0, 2, 1, 1], average="macro"))
    assert result.macro_over == {
        "balanced_accuracy": ("a", "b"),
        "f1_macro": ("a", "b", "c"),
        "auroc_macro": ("a", "b"),
    }


def test_constant_prediction_has_mcc_zero_and_null_precision():
    result = evaluate(make([0, 1, 0, 1, 1], [[0.8, 0.2]] * 5))
    assert result.mcc == 0
    assert result.confidence_intervals["mcc"] == (0, 0)
    assert result.auroc_macro == 0.5
    assert result.per_class["b"].precision is None
    assert result.per_class["b"].f1 == 0


def test_test_part_of_one_class_has_null_auroc_and_null_specificity():
    result = evaluate(make([1, 1, 1], [[0.4, 0.6], [0.6, 0.4], [0.1, 0.9]]))
    assert result.auroc_macro is None
    assert result.confidence_intervals["auroc_macro"] is None
    assert result.per_class["b"].specificity is None
    assert result.per_class["a"].sensitivity is None
    assert result.macro_over["auroc_macro"] == ()
    assert result.mcc == 0


def test_perfect_and_single_image_results_are_json_without_nan():
    for case in (make([0, 1, 2], np.eye(3)), make([0], [[0.5, 0.5]])):
        json.dumps(evaluate(case).to_json(), allow_nan=False)


@pytest.mark.parametrize("decimals", [None, 0])
def test_weighted_auroc_equals_scikit_learn_with_sample_weights(decimals):
    labels, probabilities = random_case(num_images=120, decimals=decimals)
    weights = np.random.default_rng(1).multinomial(120, np.full(120, 1 / 120), size=20).astype(float)
    found = weighted_aurocs(labels == 2, probabilities[:, 2], weights)
    expected = [sk.roc_auc_score(labels == 2, probabilities[:, 2], sample_weight=w) for w in weights]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_intervals_equal_a_plain_bootstrap_with_scikit_learn(num_classes):
    """The weights must be what copying the drawn patients' images would give."""
    labels, probabilities = random_case(num_images=60, num_classes=num_classes, decimals=1)
    patients = np.arange(60) // 3
    random, plain = numpy_stream("bootstrap", 7), []
    for drawn in random.integers(20, size=(50, 20)):
        rows = np.concatenate([np.flatnonzero(patients == patient) for patient in drawn])
        truth, scores = labels[rows], probabilities[rows]
        said = scores.argmax(1)
        plain.append(
            {
                "accuracy": sk.accuracy_score(truth, said),
                "balanced_accuracy": sk.balanced_accuracy_score(truth, said),
                "f1_macro": sk.f1_score(truth, said, average="macro"),
                "auroc_macro": sk.roc_auc_score(truth, scores[:, 1] if num_classes == 2 else scores, multi_class="ovr"),
                "mcc": sk.matthews_corrcoef(truth, said),
                "ece": reference_ece(truth, scores),
                "brier": np.mean(((np.eye(num_classes)[truth] - scores) ** 2).sum(1)),
            }
        )
    case = make(labels, probabilities, tuple(f"patient {p}" for p in patients))
    result = evaluate(case, num_bootstrap=50, seed=7)
    assert result.bootstrap_unit == "patient"
    assert result.num_bootstrap_units == 20
    for name in POINT_METRICS:
        expected = np.percentile([replicate[name] for replicate in plain], [2.5, 97.5])
        assert result.confidence_intervals[name] == pytest.approx(expected, abs=1e-9), name


def test_accuracy_interval_has_the_width_that_theory_gives():
    labels, probabilities = random_case(num_images=1000, signal=2.0)
    result = evaluate(make(labels, probabilities))
    interval, accuracy = result.confidence_intervals["accuracy"], result.accuracy
    assert interval is not None
    low, high = interval
    assert low < accuracy < high
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(accuracy * (1 - accuracy) / 1000), rel=0.15)


def test_resampling_patients_widens_the_interval_where_their_images_agree():
    labels, probabilities = random_case(num_images=50)
    labels, probabilities = np.repeat(labels, 8), np.repeat(probabilities, 8, axis=0)
    by_patient = evaluate(make(labels, probabilities, tuple(f"p{i // 8}" for i in range(400))))
    by_image = evaluate(make(labels, probabilities))
    assert by_image.bootstrap_unit == "image"

    def width(result):
        low, high = result.confidence_intervals["accuracy"]
        return high - low

    assert width(by_patient) > 2 * width(by_image)


def test_images_without_a_patient_id_are_units_of_their_own():
    labels, probabilities = random_case(num_images=6)
    result = evaluate(make(labels, probabilities, ("x", "x", None, None, "y", None)))
    assert result.num_bootstrap_units == 5


def test_a_single_patient_gives_no_interval_rather_than_an_empty_one():
    labels, probabilities = random_case(num_images=6)
    result = evaluate(make(labels, probabilities, ("x",) * 6))
    assert set(result.confidence_intervals.values()) == {None}


def test_intervals_depend_on_the_seed_only(monkeypatch):
    case = make(*random_case())
    first = evaluate(case, num_bootstrap=200, seed=3)
    assert evaluate(case, num_bootstrap=200, seed=3) == first
    assert evaluate(case, num_bootstrap=200, seed=4) != first
    monkeypatch.setattr("twinbud.evaluation.bootstrap._BLOCK_ELEMENTS", 1000)
    in_small_blocks = evaluate(case, num_bootstrap=200, seed=3).confidence_intervals
    for name, interval in in_small_blocks.items():
        assert interval == pytest.approx(first.confidence_intervals[name], abs=1e-12)


def test_a_thousand_replicates_of_1400_images_are_quick():
    case = make(*random_case(num_images=1400))
    started = time.process_time()
    evaluate(case)
    assert time.process_time() - started < 8


def test_metrics_come_back_from_json_as_they_were():
    for case in (make(*random_case(), tuple(f"p{i // 3}" for i in range(300))), make([1, 1], [[0.4, 0.6]] * 2)):
        result = evaluate(case, num_bootstrap=20)
        assert EvaluationMetrics.from_json(json.loads(json.dumps(result.to_json()))) == result


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("accuracy", "0.5", r"metrics\.accuracy: '0\.5' is not a number"),
        ("num_test", True, r"metrics\.num_test: 'True' is not an integer"),
        ("bootstrap_unit", "eye", r"metrics\.bootstrap_unit: 'eye' is not one of"),
        ("confidence_intervals", {"accuracy": [0.1]}, r"confidence_intervals\.accuracy: .* is not an array of 2"),
        ("per_class", {"a": {"support": 3}}, r"metrics\.per_class\.a: missing 5 required"),
    ],
)
def test_damaged_metrics_are_refused_by_the_name_of_the_key(key, value, message):
    content = evaluate(make(*random_case()), num_bootstrap=0).to_json()
    with pytest.raises(ValueError, match=message):
        EvaluationMetrics.from_json({**content, key: value})


def test_what_cannot_be_evaluated_is_refused_in_one_line():
    unlabelled = Predictions(paths=("a",), labels=None, probabilities=np.array([[0.5, 0.5]]), classes=("x", "y"))
    with pytest.raises(TwinbudError, match="the images have no labels"):
        evaluate(unlabelled)
    with pytest.raises(TwinbudError, match="there are 0 images"):
        evaluate(make(np.zeros(0), np.zeros((0, 2))))
    with pytest.raises(TwinbudError, match="the number of classes is 1"):
        evaluate(make([0], [[1.0]]))
    with pytest.raises(TwinbudError, match=r"1\.png: a probability is NaN or infinite"):
        evaluate(make([0, 1], [[0.5, 0.5], [np.nan, 1.0]]))


def test_metrics_of_grades_equal_scikit_learn_and_have_intervals_around_them():
    labels, probabilities = random_case(num_classes=5)
    predictions = replace(make(labels, probabilities), task=Ordinal(tuple("abcde")))
    result = evaluate(predictions, num_bootstrap=200)
    predicted = predictions.predicted
    assert result.kappa == pytest.approx(sk.cohen_kappa_score(labels, predicted, weights="quadratic"))
    assert result.mae == pytest.approx(sk.mean_absolute_error(labels, predicted))
    assert result.within_one == pytest.approx(np.mean(np.abs(labels - predicted) <= 1))
    for name in ("kappa", "mae", "within_one"):
        interval = result.confidence_intervals[name]
        assert interval is not None
        low, high = interval
        assert low < getattr(result, name) < high
    assert next(iter(result.texts)) == "kappa"


def test_kappa_is_undefined_where_labels_and_predictions_are_of_one_grade():
    predictions = replace(make([1, 1], [[0.1, 0.9], [0.2, 0.8]]), task=Ordinal(("a", "b")))
    result = evaluate(predictions, num_bootstrap=0)
    assert (result.kappa, result.mae, result.within_one) == (None, 0.0, 1.0)


def test_one_class_an_image_has_no_metrics_of_grades():
    result = evaluate(make(*random_case(num_images=30)), num_bootstrap=5)
    assert "kappa" not in result.to_json()
    assert set(result.confidence_intervals) == set(POINT_METRICS)
