"""The curvature of the divergence, as one scalar of logits and noise."""

from __future__ import annotations

from typing import cast

import pytest
import torch

from twinbud.tasks.base import Task
from twinbud.tasks.multi_label import MultiLabel
from twinbud.tasks.ordinal import Ordinal
from twinbud.tasks.single import SingleLabel

NAMES = ("a", "b", "c")
TASKS = (SingleLabel(NAMES), MultiLabel(NAMES), Ordinal((*NAMES, "d")))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_gradients_have_the_second_derivatives_of_the_divergence_as_covariance(
    task: Task, temperature: float
) -> None:
    """The scalar is linear in the noise, so that its gradients for unit vectors give the covariance exactly."""
    logits = torch.randn(1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    columns: list[torch.Tensor] = []
    for noise in torch.eye(3, dtype=torch.float64):
        at = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(task.curvature(at, noise[None], temperature), at)
        columns.append(gradient[0])
    factor = torch.stack(columns, dim=1)
    covariance = factor @ factor.T
    found = torch.autograd.functional.hessian(lambda at: task.divergence(at, logits, temperature), logits)
    hessian = cast("torch.Tensor", found)[0, :, 0]
    torch.testing.assert_close(covariance / covariance.trace(), hessian / hessian.trace())
