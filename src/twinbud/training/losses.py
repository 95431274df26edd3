"""Equation 5 of arXiv 2508.20461, of the terms that a task defines (eqs. 1-4), as a pure function.

Shape legend: B batch, K outputs. Logits of lower precision are converted to float32 first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from twinbud.tasks.base import UNBALANCED, Balancing, Task
from twinbud.tasks.formulas import at_least_float32
from twinbud.tasks.single import SINGLE_LABEL


class Losses(NamedTuple):
    """The total loss (eq. 5) and its two parts, each a scalar tensor; ``skd`` is None without soft targets."""

    total: torch.Tensor
    ce: torch.Tensor
    skd: torch.Tensor | None

    def detached(self) -> Losses:
        """Return the losses detached from the autograd graph."""
        return Losses(self.total.detach(), self.ce.detach(), None if self.skd is None else self.skd.detach())


def total_loss(
    student_BK: torch.Tensor,
    targets_BK: torch.Tensor | None,
    labels: torch.Tensor,
    *,
    alpha: float,
    temperature: float,
    ce_temperature: float = 1.0,
    label_smoothing: float = 0.0,
    targets_are_probabilities: bool = False,
    task: Task = SINGLE_LABEL,
    balancing: Balancing = UNBALANCED,
) -> Losses:
    """Compute L = α L_ce + (1 − α) τ² L_skd (eq. 5); without soft targets, L = L_ce (CM1-CM4).

    Args:
        student_BK: Logits of the student.
        targets_BK: Soft targets, see ``Task.divergence``; None: no soft targets.
        labels: Targets of the task: int64 class indices (B,), or the probabilities of mixed images.
        alpha: Weight of cross-entropy, in [0, 1].
        temperature: τ > 0 of eqs. 1-3.
        ce_temperature: Temperature of eq. 4: 1, or τ as the paper literally states.
        label_smoothing: ε in [0, 1): L_ce has the labels (1 − ε) y + ε / K (Szegedy et al., CVPR 2016).
        targets_are_probabilities: Whether the targets are probabilities instead of logits.
        task: Defines both terms.
        balancing: How cross-entropy allows for classes of different size.

    Returns:
        Scalar losses, at least float32.
    """
    student_BK = at_least_float32(student_BK)
    labels = labels.to(student_BK.dtype) if labels.is_floating_point() else labels
    ce = task.cross_entropy(
        student_BK, labels, temperature=ce_temperature, label_smoothing=label_smoothing, balancing=balancing
    )
    if targets_BK is None:
        return Losses(ce, ce, None)
    skd = task.divergence(
        student_BK, at_least_float32(targets_BK), temperature, targets_are_probabilities=targets_are_probabilities
    )
    return Losses(alpha * ce + (1 - alpha) * temperature**2 * skd, ce, skd)
