"""Equations 1-5 of arXiv 2508.20461, as pure functions.

Shape legend: B batch, K classes. Logits of lower precision are widened to float32 first.
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
        """The same numbers, which keep no graph alive."""
        return Losses(self.total.detach(), self.ce.detach(), None if self.skd is None else self.skd.detach())


def self_distillation_loss(
    student_BK: torch.Tensor, targets_BK: torch.Tensor, temperature: float, *, softened: bool = False
) -> torch.Tensor:
    """L_skd of eq. 3: KL(p′ ‖ p) of the softened outputs (eqs. 1, 2), summed over classes, averaged over the batch.

    Args:
        student_BK: Logits of S; the gradient flows into these.
        targets_BK: Logits of S′, or what stands in for them; no gradient flows into these.
        temperature: τ > 0.
        softened: Whether the targets are p′ itself instead of logits, each row a distribution; zeros may be in it.
    """
    log_p = F.log_softmax(student_BK / temperature, dim=1)
    if softened:
        return F.kl_div(log_p, targets_BK.detach(), reduction="batchmean")
    log_p_auxiliary = F.log_softmax(targets_BK.detach() / temperature, dim=1)
    return F.kl_div(log_p, log_p_auxiliary, reduction="batchmean", log_target=True)


def total_loss(
    student_BK: torch.Tensor,
    targets_BK: torch.Tensor | None,
    labels_B: torch.Tensor,
    *,
    alpha: float,
    temperature: float,
    ce_temperature: float = 1.0,
    softened: bool = False,
) -> Losses:
    """L = α L_ce + (1 − α) τ² L_skd (eq. 5); without soft targets, L = L_ce (CM1-CM4).

    Args:
        student_BK: Logits of S.
        targets_BK: Soft targets, see ``self_distillation_loss``, or None.
        labels_B: int64 class indices.
        alpha: Weight of cross-entropy, in [0, 1].
        temperature: τ of eqs. 1-3.
        ce_temperature: Temperature of eq. 4: 1, or τ where its letter is followed.
        softened: Whether the targets are distributions instead of logits.
    """
    student_BK = at_least_float32(student_BK)
    ce = F.cross_entropy(student_BK / ce_temperature, labels_B)
    if targets_BK is None:
        return Losses(ce, ce, None)
    skd = self_distillation_loss(student_BK, at_least_float32(targets_BK), temperature, softened=softened)
    return Losses(alpha * ce + (1 - alpha) * temperature**2 * skd, ce, skd)


def at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    """The same numbers, widened where they are of lower precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
