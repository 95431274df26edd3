"""Equations 1-5 of arXiv 2508.20461, as pure functions.

Shape legend: B batch, K classes. Logits of lower precision are converted to float32 first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Losses(NamedTuple):
    """The total loss (eq. 5) and its two parts, each a scalar tensor; ``skd`` is None without soft targets."""

    total: torch.Tensor
    ce: torch.Tensor
    skd: torch.Tensor | None

    def detached(self) -> Losses:
        """Return the losses detached from the autograd graph."""
        return Losses(self.total.detach(), self.ce.detach(), None if self.skd is None else self.skd.detach())


def self_distillation_loss(
    student_BK: torch.Tensor, targets_BK: torch.Tensor, temperature: float, *, targets_are_probabilities: bool = False
) -> torch.Tensor:
    """Compute L_skd = KL(p′ ‖ p) of the softened probabilities (eqs. 1-3): sum over classes, mean over the batch.

    Args:
        student_BK: Logits of the student, with gradient.
        targets_BK: Soft targets, of the auxiliary for example: logits, or probabilities; detached.
        temperature: τ > 0.
        targets_are_probabilities: Whether the targets are p′ itself, which may contain zeros, not logits.

    Returns:
        Scalar in the dtype of the logits.
    """
    log_p = F.log_softmax(student_BK / temperature, dim=1)
    if targets_are_probabilities:
        return F.kl_div(log_p, targets_BK.detach(), reduction="batchmean")
    log_p_auxiliary = F.log_softmax(targets_BK.detach() / temperature, dim=1)
    return F.kl_div(log_p, log_p_auxiliary, reduction="batchmean", log_target=True)


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
) -> Losses:
    """Compute L = α L_ce + (1 − α) τ² L_skd (eq. 5); without soft targets, L = L_ce (CM1-CM4).

    Args:
        student_BK: Logits of the student.
        targets_BK: Soft targets, see ``self_distillation_loss``; None: no soft targets.
        labels: int64 class indices (B,), or the probabilities (B, K) of mixed images.
        alpha: Weight of cross-entropy, in [0, 1].
        temperature: τ > 0 of eqs. 1-3.
        ce_temperature: Temperature of eq. 4: 1, or τ as the paper literally states.
        label_smoothing: ε in [0, 1): L_ce has the labels (1 − ε) y + ε / K (Szegedy et al., CVPR 2016).
        targets_are_probabilities: Whether the targets are probabilities instead of logits.

    Returns:
        Scalar losses, at least float32.
    """
    student_BK = at_least_float32(student_BK)
    labels = labels.to(student_BK.dtype) if labels.is_floating_point() else labels
    ce = F.cross_entropy(student_BK / ce_temperature, labels, label_smoothing=label_smoothing)
    if targets_BK is None:
        return Losses(ce, ce, None)
    skd = self_distillation_loss(
        student_BK, at_least_float32(targets_BK), temperature, targets_are_probabilities=targets_are_probabilities
    )
    return Losses(alpha * ce + (1 - alpha) * temperature**2 * skd, ce, skd)


def at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    """Convert logits of lower precision to float32; return others unchanged."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
