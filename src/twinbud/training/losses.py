"""Equations 1-5 of arXiv 2508.20461, as pure functions.

Shape legend: B batch, K classes. Logits of lower precision are widened to float32 first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Losses(NamedTuple):
    """The total loss (eq. 5) and its two parts, each a scalar tensor; ``skd`` is None where there is no S′."""

    total: torch.Tensor
    ce: torch.Tensor
    skd: torch.Tensor | None

    def detached(self) -> Losses:
        """The same numbers, which keep no graph alive."""
        return Losses(self.total.detach(), self.ce.detach(), None if self.skd is None else self.skd.detach())


def self_distillation_loss(student_BK: torch.Tensor, auxiliary_BK: torch.Tensor, temperature: float) -> torch.Tensor:
    """L_skd of eq. 3: KL(p′ ‖ p) of the softened outputs (eqs. 1, 2), summed over classes, averaged over the batch.

    Args:
        student_BK: Logits of S; the gradient flows into these.
        auxiliary_BK: Logits of S′; no gradient flows into these.
        temperature: τ > 0.
    """
    log_p = F.log_softmax(student_BK / temperature, dim=1)
    log_p_auxiliary = F.log_softmax(auxiliary_BK.detach() / temperature, dim=1)
    return F.kl_div(log_p, log_p_auxiliary, reduction="batchmean", log_target=True)


def total_loss(
    student_BK: torch.Tensor,
    auxiliary_BK: torch.Tensor | None,
    labels_B: torch.Tensor,
    *,
    alpha: float,
    temperature: float,
    ce_temperature: float = 1.0,
) -> Losses:
    """L = α L_ce + (1 − α) τ² L_skd (eq. 5); without S′, L = L_ce (CM1-CM4).

    Args:
        student_BK: Logits of S.
        auxiliary_BK: Logits of S′, or None.
        labels_B: int64 class indices.
        alpha: Weight of cross-entropy, in [0, 1].
        temperature: τ of eqs. 1-3.
        ce_temperature: Temperature of eq. 4: 1, or τ where its letter is followed.
    """
    student_BK = _at_least_float32(student_BK)
    ce = F.cross_entropy(student_BK / ce_temperature, labels_B)
    if auxiliary_BK is None:
        return Losses(ce, ce, None)
    skd = self_distillation_loss(student_BK, _at_least_float32(auxiliary_BK), temperature)
    return Losses(alpha * ce + (1 - alpha) * temperature**2 * skd, ce, skd)


def _at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
