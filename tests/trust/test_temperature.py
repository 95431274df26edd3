"""Temperature scaling finds the temperature that made probabilities wrong, and changes no decision."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import log_loss

from twinbud.tasks.base import Task
from twinbud.tasks.multi_label import MultiLabel
from twinbud.tasks.ordinal import Ordinal
from twinbud.tasks.single import SingleLabel
from twinbud.trust.temperature import fit_temperature, negative_log_likelihood

CLASSES = ("a", "b", "c")


def labelled_logits(num_images: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that would be calibrated if they were divided by ``temperature``."""
    random = np.random.default_rng(seed)
    true_logits = random.normal(scale=2, size=(num_images, 3))
    labels = np.array([random.choice(3, p=row) for row in softmax(true_logits, axis=1)])
    return (true_logits * temperature).astype(np.float32), labels


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_that_logits_were_multiplied_by_is_found(temperature: float) -> None:
    logits, labels = labelled_logits(20_000, temperature)
    found = fit_temperature(SingleLabel(CLASSES), logits, labels, np.ones(len(labels)))
    assert found == pytest.approx(temperature, rel=0.03)


def test_no_other_temperature_has_a_smaller_loss() -> None:
    logits, labels = labelled_logits(60, 2.5)
    found = fit_temperature(SingleLabel(CLASSES), logits, labels, np.ones(60))
    losses = [log_loss(labels, softmax(logits.astype(float) / t, axis=1)) for t in (0.98 * found, found, 1.02 * found)]
    assert losses[1] < min(losses[0], losses[2])


def test_an_image_of_weight_two_counts_as_two_images() -> None:
    logits, labels = labelled_logits(50, 2.0)
    weights = np.ones(50)
    weights[:20] = 2
    doubled = fit_temperature(
        SingleLabel(CLASSES), np.concatenate([logits, logits[:20]]), np.r_[labels, labels[:20]], np.ones(70)
    )
    assert fit_temperature(SingleLabel(CLASSES), logits, labels, weights) == pytest.approx(doubled, rel=1e-3)


def test_the_likelihood_is_that_of_scikit_learn() -> None:
    logits, labels = labelled_logits(40, 1.0)
    probabilities = softmax(logits.astype(float), axis=1)
    ours = negative_log_likelihood(SingleLabel(CLASSES), probabilities, labels)
    assert ours.mean() == pytest.approx(log_loss(labels, probabilities), rel=1e-9)


def test_labels_that_are_not_known_do_not_count() -> None:
    probabilities = np.array([[0.9, 0.2, 0.5], [0.5, 0.5, 0.5]])
    labels = np.array([[1.0, 0.0, np.nan], [np.nan] * 3])
    ours = negative_log_likelihood(MultiLabel(CLASSES), probabilities, labels)
    assert ours == pytest.approx([-(np.log(0.9) + np.log(0.8)) / 2, 0])


@pytest.mark.parametrize("task", [SingleLabel(CLASSES), MultiLabel(CLASSES, thresholds=(0.1, 0.5, 0.93))])
@settings(max_examples=30, deadline=None)
@given(temperature=st.floats(0.2, 20), seed=st.integers(0, 1000))
def test_no_decision_changes_with_the_temperature(task: Task, temperature: float, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(scale=3, size=(20, 3)).astype(np.float32)
    before = task.predicted(task.probabilities(logits))
    after = task.at_temperature(temperature).predicted(task.probabilities(logits / np.float32(temperature)))
    assert (before == after).all()


def test_grades_can_be_calibrated() -> None:
    random = np.random.default_rng(0)
    task = Ordinal(CLASSES)
    true_logits = random.normal(scale=2, size=(20_000, 2)).astype(np.float32)
    labels = np.array([random.choice(3, p=row) for row in task.probabilities(true_logits)])
    assert fit_temperature(task, true_logits * 3, labels, np.ones(20_000)) == pytest.approx(3, rel=0.05)
