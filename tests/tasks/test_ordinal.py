"""CORN, checked against coral-pytorch, and what follows from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from coral_pytorch.dataset import corn_label_from_logits
from coral_pytorch.losses import corn_loss
from hypothesis import example, given, settings
from hypothesis import strategies as st

from twinbud.data.mixing import draw_mixing, mix
from twinbud.tasks.balance import balance_loss
from twinbud.tasks.ordinal import Ordinal

TASK = Ordinal(("none", "mild", "moderate", "severe"))
LABELS = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 3, 3])


def logits(seed: int = 0, count: int = 10, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("labels", [LABELS, torch.tensor([0, 0]), torch.tensor([3]), torch.tensor([1, 2, 1])], ids=str)
def test_the_loss_is_that_of_coral_pytorch(labels: torch.Tensor) -> None:
    given_logits = logits(count=len(labels))
    torch.testing.assert_close(TASK.cross_entropy(given_logits, labels), corn_loss(given_logits, labels, 4))


def test_predictions_are_those_of_coral_pytorch() -> None:
    given_logits = logits(count=500)
    predicted = TASK.predicted(TASK.probabilities(given_logits.numpy()))
    assert predicted.tolist() == corn_label_from_logits(given_logits).tolist()
    assert len(set(predicted.tolist())) == 4
    labels = torch.arange(500) % 4
    assert TASK.num_correct(given_logits, labels).item() == (predicted == labels.numpy()).sum()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 40))
@example(801, 17.0)  # one probability is 2e-11
def test_probabilities_are_a_distribution_that_the_loss_is_the_likelihood_of(seed: int, scale: float) -> None:
    given_logits = logits(seed, scale=scale)
    probabilities = TASK.probabilities(given_logits.numpy())
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    assert probabilities.min() >= 0
    likelihood = torch.from_numpy(probabilities)[torch.arange(10), LABELS]
    num_pairs = LABELS.add(1).clamp(max=3).sum()
    found = TASK.cross_entropy(given_logits.double(), LABELS) * num_pairs
    torch.testing.assert_close(found, -likelihood.log().sum(), rtol=1e-10, atol=1e-10)


def test_an_unmixed_image_has_the_loss_of_its_label_and_a_mixed_one_the_weighted_sum() -> None:
    given_logits = logits()
    torch.testing.assert_close(
        TASK.cross_entropy(given_logits, TASK.to_mix(LABELS)), TASK.cross_entropy(given_logits, LABELS)
    )
    one, other = TASK.to_mix(torch.tensor([3])), TASK.to_mix(torch.tensor([1]))
    mixed = 0.25 * one + 0.75 * other
    pairs = [3.0, 2.0]
    sums = [TASK.cross_entropy(given_logits[:1], label) * n for label, n in zip((one, other), pairs, strict=True)]
    expected = (0.25 * sums[0] + 0.75 * sums[1]) / (0.25 * pairs[0] + 0.75 * pairs[1])
    torch.testing.assert_close(TASK.cross_entropy(given_logits[:1], mixed), expected)


def test_mixup_keeps_targets_that_are_distributions() -> None:
    images = torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    _, targets = mix(images, TASK.to_mix(LABELS), draw_mixing(0, 1, 10, mixup=0.4, cutmix=0.0))
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(10))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_self_distillation_is_the_mean_binary_divergence_of_the_conditional_probabilities(temperature: float) -> None:
    student, auxiliary = logits(0), logits(1)
    p, q = torch.sigmoid(auxiliary / temperature), torch.sigmoid(student / temperature)
    expected = F.kl_div(torch.stack([q, 1 - q]).log(), torch.stack([p, 1 - p]), reduction="sum") / 30
    torch.testing.assert_close(TASK.divergence(student, auxiliary, temperature), expected)
    assert TASK.divergence(student, student, temperature).item() == pytest.approx(0, abs=1e-7)


def test_the_mean_of_two_networks_is_that_of_their_conditional_probabilities() -> None:
    one, other = logits(0), logits(1)
    mean = TASK.mean_logits(one, other, 3.0)
    torch.testing.assert_close(
        torch.sigmoid(mean / 3), (torch.sigmoid(one / 3) + torch.sigmoid(other / 3)) / 2, rtol=1e-5, atol=1e-6
    )


def test_a_network_that_knows_the_prior_alone_predicts_the_shares_of_the_grades() -> None:
    shares = TASK.probabilities(TASK.prior_logits(LABELS)[None].numpy())
    np.testing.assert_allclose(shares[0], [0.5, 0.2, 0.1, 0.2])


def test_logit_adjustment_leaves_nothing_to_learn_from_the_prior() -> None:
    balancing = balance_loss("logit-adjusted", TASK, LABELS)
    shift = torch.zeros(3, requires_grad=True)
    TASK.cross_entropy(shift.expand(10, 3), LABELS, balancing=balancing).backward()
    assert shift.grad is not None
    torch.testing.assert_close(shift.grad, torch.zeros(3), atol=1e-6, rtol=0)


def test_each_output_learns_from_the_images_that_reach_its_grade() -> None:
    found = TASK.binary_targets(torch.tensor([0, 1, 3]))
    assert found is not None
    nan = float("nan")
    expected = torch.tensor([[0.0, nan, nan], [1.0, 0.0, nan], [1.0, 1.0, 1.0]])
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_a_patient_has_the_highest_grade_of_the_images() -> None:
    assert TASK.joined_label(np.array([0, 2, 1])) == 2
