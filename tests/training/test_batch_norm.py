"""Batch norms: their running statistics are those of the batches, and a batch of one image has none."""

from __future__ import annotations

from typing import Any

import timm
import torch
import torch.nn.functional as F

from twinbud.models.student_pair import StudentPair
from twinbud.training.train_step import Objective, TrainingStep

SIZE = 32
"""In pixels; the last map of the network then has one position, so that one image gives one value per channel."""


def training_step() -> TrainingStep:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student: Any = timm.create_model("test_resnet", num_classes=3)
        student.train()
    objective = Objective(alpha=0.6, beta=0.9, temperature=4.0, ce_temperature=1.0, clip_norm=None, bf16=False)
    return TrainingStep(StudentPair(student=student, auxiliary=None), objective, weight_decay=0.05)


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def statistics(network: Any) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


def test_running_statistics_are_the_moving_average_of_the_batches() -> None:
    """Of the first norm, against float64 arithmetic; a learning rate of 0 keeps its input the same."""
    step = training_step()
    student = step.student_pair.student
    convolution, norm = student.conv1[0], student.conv1[1]
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    for seed in range(3):
        batch = images(4, seed)
        values = F.conv2d(batch.double(), convolution.weight.double(), stride=convolution.stride, padding=1)
        mean = 0.9 * mean + 0.1 * values.mean(dim=(0, 2, 3))
        variance = 0.9 * variance + 0.1 * values.var(dim=(0, 2, 3))
        step(batch, torch.tensor([0, 1, 2, 0]), 0.0)
    torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), variance, rtol=1e-4, atol=1e-6)


def test_a_batch_of_one_image_trains_and_leaves_the_running_statistics() -> None:
    step = training_step()
    student = step.student_pair.student
    step(images(4), torch.tensor([0, 1, 2, 0]), 1e-3)
    before, weights = statistics(student), {name: value.clone() for name, value in student.named_parameters()}
    result = step(images(1), torch.tensor([1]), 1e-3)
    assert torch.isfinite(result.losses.total)
    after = statistics(student)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not torch.equal(weights["layer4.0.conv1.weight"], student.layer4[0].conv1.weight)
    step(images(4, seed=1), torch.tensor([0, 1, 2, 0]), 1e-3)
    assert not torch.equal(before["layer4.0.bn1.running_mean"], statistics(student)["layer4.0.bn1.running_mean"])


def test_a_restored_step_continues_bit_for_bit() -> None:
    """Running statistics included: they are part of what a checkpoint holds."""
    one, other = training_step(), training_step()
    labels = torch.tensor([0, 1, 2, 0])
    one(images(4), labels, 1e-3)
    saved = {name: value.clone() for name, value in one.tensors().items()}
    other(images(4, seed=7), labels, 1e-3)
    other.restore(saved, one.num_steps)
    for step in (one, other):
        step(images(4, seed=1), labels, 1e-3)
    expected, found = one.tensors(), other.tensors()
    assert expected.keys() == found.keys()
    assert any(name.endswith("running_var") for name in expected)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
