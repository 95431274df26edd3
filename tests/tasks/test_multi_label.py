"""Several labels an image: losses that skip what is unknown, decisions, and what patients show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from sklearn.utils.class_weight import compute_sample_weight

from twinbud.data.mixing import draw_mixing, mix
from twinbud.tasks.balance import balance_loss, draw_balanced_samples
from twinbud.tasks.formulas import f1_threshold
from twinbud.tasks.multi_label import MultiLabel

TASK = MultiLabel(("effusion", "mass", "nodule"))
TEXTS = ["effusion", "effusion|mass", "no finding", "mass|nodule?", "effusion?|mass?|nodule?", "nodule", "effusion"]
TARGETS = TASK.encode(TEXTS)
KNOWN = ~TARGETS.isnan()


def logits(seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(7, 3, generator=torch.Generator().manual_seed(seed))


def test_texts_of_findings_become_targets_and_come_back() -> None:
    nan = float("nan")
    assert TARGETS[:3].tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    torch.testing.assert_close(TARGETS[3], torch.tensor([0.0, 1.0, nan]), equal_nan=True)
    assert TASK.texts(TARGETS.numpy()) == TEXTS


def test_a_label_that_the_model_does_not_know_is_an_error() -> None:
    with pytest.raises(ValueError, match="not in tuple"):
        TASK.encode(["hernia"])


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_cross_entropy_is_the_mean_over_known_labels(temperature: float) -> None:
    expected = F.binary_cross_entropy_with_logits(logits()[KNOWN] / temperature, TARGETS[KNOWN])
    torch.testing.assert_close(TASK.cross_entropy(logits(), TARGETS, temperature=temperature), expected)


def test_unknown_labels_have_no_gradient_and_an_image_of_unknown_labels_no_loss() -> None:
    given_logits = logits().requires_grad_()
    TASK.cross_entropy(given_logits, TARGETS).backward()
    assert given_logits.grad is not None
    assert given_logits.grad.isfinite().all()
    assert torch.equal(given_logits.grad != 0, KNOWN)
    assert TASK.cross_entropy(logits()[4:5], TARGETS[4:5]).item() == 0


def test_label_smoothing_moves_targets_toward_one_half() -> None:
    smoothed = 0.8 * TARGETS[KNOWN] + 0.1
    expected = F.binary_cross_entropy_with_logits(logits()[KNOWN], smoothed)
    torch.testing.assert_close(TASK.cross_entropy(logits(), TARGETS, label_smoothing=0.2), expected)


def test_class_weights_are_those_of_scikit_learn_for_each_label() -> None:
    balancing = balance_loss("weights", TASK, TARGETS)
    losses = F.binary_cross_entropy_with_logits(logits(), TARGETS.nan_to_num(), reduction="none")
    weights = torch.zeros(7, 3)
    for k in range(3):
        known = KNOWN[:, k]
        weights[known, k] = torch.tensor(compute_sample_weight("balanced", TARGETS[known, k].numpy())).float()
    expected = (weights * losses).sum() / KNOWN.sum()
    torch.testing.assert_close(TASK.cross_entropy(logits(), TARGETS, balancing=balancing), expected)


def test_logit_adjustment_adds_the_log_odds_of_each_label() -> None:
    balancing = balance_loss("logit-adjusted", TASK, TARGETS)
    odds = torch.tensor([3 / 3, 2 / 4, 1 / 4])
    expected = TASK.cross_entropy(logits() + odds.log(), TARGETS)
    torch.testing.assert_close(TASK.cross_entropy(logits(), TARGETS, balancing=balancing), expected)


def test_the_sampler_prefers_rare_labels_and_never_draws_what_teaches_nothing() -> None:
    drawn = torch.cat([draw_balanced_samples(TASK, TARGETS, 0, epoch) for epoch in range(1, 101)])
    counts = torch.bincount(drawn, minlength=7)
    assert counts[4] == 0
    assert counts[5] > counts[0]


def test_self_distillation_is_the_mean_binary_divergence_over_all_labels() -> None:
    p, q = torch.sigmoid(logits(1) / 4), torch.sigmoid(logits(0) / 4)
    expected = F.kl_div(torch.stack([q, 1 - q]).log(), torch.stack([p, 1 - p]), reduction="sum") / 21
    torch.testing.assert_close(TASK.divergence(logits(0), logits(1), 4.0), expected)


def test_a_label_that_is_unknown_in_one_of_two_mixed_images_is_unknown() -> None:
    images = torch.rand(7, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    _, mixed = mix(images, TASK.to_mix(TARGETS), draw_mixing(0, 1, 7, mixup=0.4, cutmix=0.0))
    assert torch.equal(~mixed.isnan(), KNOWN & KNOWN.roll(1, dims=0))
    assert TASK.cross_entropy(logits(), mixed).isfinite()


def test_decisions_follow_the_thresholds_of_the_labels() -> None:
    probabilities = np.array([[0.3, 0.3, 0.6]])
    assert TASK.predicted(probabilities).tolist() == [[0, 0, 1]]
    assert MultiLabel(TASK.classes, thresholds=(0.3, 0.5, 0.7)).predicted(probabilities).tolist() == [[1, 0, 0]]


@pytest.mark.parametrize("seed", range(2))
def test_no_other_threshold_has_a_higher_f1(seed: int) -> None:
    random = np.random.default_rng(seed)
    positive = random.random(60) < 0.2
    scores = (0.2 * positive + random.random(60) * 0.5).round(2)
    best = f1_score(positive, scores >= f1_threshold(scores, positive))
    others = [f1_score(positive, scores >= threshold) for threshold in np.unique(scores)]
    assert best == pytest.approx(max(others))


def test_of_equally_good_thresholds_one_half_or_the_middle_of_the_nearest_is_taken() -> None:
    positive = np.array([False, True])
    assert f1_threshold(np.array([0.1, 0.9]), positive) == 0.5
    assert f1_threshold(np.array([0.1, 0.3]), positive) == pytest.approx(0.2)
    assert f1_threshold(np.array([0.7, 0.9]), positive) == pytest.approx(0.8)
    assert f1_threshold(np.array([0.5, 0.9]), positive) == pytest.approx(0.7)
    assert f1_threshold(np.array([0.1, 0.5]), positive) == 0.5
    assert f1_threshold(np.array([0.2]), np.array([True])) == pytest.approx(0.1)
    assert f1_threshold(np.array([0.1, 0.3]), np.array([False, False])) == 0.5


def test_thresholds_are_chosen_on_known_labels_alone() -> None:
    probabilities = TASK.probabilities(logits().numpy())
    task = TASK.decided_by(lambda: (probabilities, TARGETS.numpy()))
    known = KNOWN[:, 1].numpy()
    expected = f1_threshold(probabilities[known, 1], TARGETS[known, 1].numpy() == 1)
    assert task.to_json()["thresholds"][1] == expected


def test_a_patient_shows_what_any_image_shows_and_lacks_what_none_shows() -> None:
    joined = TASK.joined_label(TASK.encode(["effusion|nodule?", "mass?|nodule?"]).numpy())
    np.testing.assert_array_equal(joined, [1, 0, np.nan])
    probabilities = np.array([[0.5, 0.1, 0.2], [0.5, 0.3, 0.2]])
    np.testing.assert_allclose(TASK.aggregate(probabilities, "noisy-or"), [0.75, 0.37, 0.36])
    np.testing.assert_allclose(TASK.aggregate(probabilities, "max"), [0.5, 0.3, 0.2])


def test_a_mistake_is_as_confident_as_its_most_confident_wrong_label() -> None:
    probabilities = np.array([[0.9, 0.2, 0.4], [0.9, 0.2, 0.4]])
    labels = TASK.encode(["mass|nodule?", "effusion|nodule?"]).numpy()
    np.testing.assert_allclose(TASK.mistakes(probabilities, labels), [0.9, np.nan])
