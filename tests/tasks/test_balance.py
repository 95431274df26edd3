"""Classes of different size: class weights, the sampler and logit adjustment, against formulas of their own."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from helpers.builders import VIT, half_preprocessing, random_model
from twinbud.config.schema import TrainingConfig
from twinbud.config.task import Balance
from twinbud.core.errors import TwinbudError
from twinbud.models.student_pair import StudentPair
from twinbud.tasks.balance import balance_loss, draw_balanced_samples
from twinbud.tasks.formulas import class_weights
from twinbud.tasks.single import SingleLabel
from twinbud.training.fit import LabelledImages, fit

LABELS = torch.tensor([0] * 16 + [1] * 4 + [2] * 2)
TASK = SingleLabel(("common", "rare", "rarest"))


def test_class_weights_are_those_of_scikit_learn() -> None:
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS.numpy())
    torch.testing.assert_close(class_weights(LABELS, 3).double(), torch.from_numpy(expected), rtol=1e-6, atol=0)
    assert class_weights(LABELS, 3)[LABELS].mean().item() == pytest.approx(1)


def test_a_class_without_images_has_no_weight_and_changes_no_other() -> None:
    assert class_weights(LABELS, 4).tolist() == [*class_weights(LABELS, 3).tolist(), 0.0]


def test_weighted_cross_entropy_weighs_each_class_the_same() -> None:
    logits = torch.randn(22, 3, generator=torch.Generator().manual_seed(0))
    each = F.cross_entropy(logits, LABELS, reduction="none")
    expected = torch.stack([each[k == LABELS].mean() for k in range(3)]).mean()
    found = TASK.cross_entropy(logits, LABELS, balancing=balance_loss("weights", TASK, LABELS))
    torch.testing.assert_close(found, expected)


def test_weighted_cross_entropy_of_unmixed_probabilities_is_that_of_the_labels() -> None:
    logits = torch.randn(22, 3, generator=torch.Generator().manual_seed(0))
    balancing = balance_loss("weights", TASK, LABELS)
    mixed = TASK.cross_entropy(logits, TASK.to_mix(LABELS), balancing=balancing)
    torch.testing.assert_close(mixed, TASK.cross_entropy(logits, LABELS, balancing=balancing))


def test_logit_adjustment_adds_the_logarithm_of_each_class_share() -> None:
    logits = torch.randn(22, 3, generator=torch.Generator().manual_seed(0))
    scaled = logits.exp() * torch.tensor([16.0, 4.0, 2.0]) / 22  # Menon et al., eq. 10 with their tau = 1
    expected = -torch.log(scaled[torch.arange(22), LABELS] / scaled.sum(dim=1)).mean()
    found = TASK.cross_entropy(logits, LABELS, balancing=balance_loss("logit-adjusted", TASK, LABELS))
    torch.testing.assert_close(found, expected)


def test_the_sampler_draws_each_class_equally_often() -> None:
    drawn = torch.cat([LABELS[draw_balanced_samples(TASK, LABELS, 0, epoch)] for epoch in range(1, 201)])
    shares = torch.bincount(drawn) / len(drawn)
    assert (shares - 1 / 3).abs().max() < 0.03


def test_the_sampler_is_a_function_of_seed_and_epoch() -> None:
    first = draw_balanced_samples(TASK, LABELS, 0, 1)
    assert torch.equal(first, draw_balanced_samples(TASK, LABELS, 0, 1))
    assert not torch.equal(first, draw_balanced_samples(TASK, LABELS, 0, 2))
    assert not torch.equal(first, draw_balanced_samples(TASK, LABELS, 1, 1))


def trained(balance: Balance) -> torch.Tensor:
    config = TrainingConfig(
        image_size=28, epochs=2, batch_size=8, temperature=4.0, drop_path=0.0, learning_rate=1e-3, balance=balance
    )
    images = torch.randint(0, 256, (22, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = LabelledImages(images_NCSS=images, labels_N=LABELS, preprocessing=half_preprocessing())
    pair = StudentPair(student=random_model("vit_tiny_patch16_224", num_classes=3, **VIT), auxiliary=None)
    fit(pair, data, config)
    return pair.student.get_classifier().weight.detach()


def test_each_way_of_balancing_trains_another_network() -> None:
    found = [trained(balance) for balance in get_args(Balance)]
    assert all(not torch.equal(one, other) for i, one in enumerate(found) for other in found[:i])


def test_the_sampler_contradicts_targets_that_need_each_image_once() -> None:
    with pytest.raises(TwinbudError, match="'sampler' contradicts --distillation tf-kd"):
        TrainingConfig(distillation="tf-kd", balance="sampler")
