"""Formulas of the soft targets, as pure functions.

Shape legend: B batch, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

SIMILARITY_MOMENTUM = 0.9
"""Momentum m of the class-similarity matrix (``cs-kd``)."""
VIRTUAL_CONFIDENCE, VIRTUAL_TEMPERATURE = 0.99, 20.0
"""Probability of the correct class and softmax temperature of the virtual teacher (``tf-kd-reg``)."""


def update_similarity(similarity_KK: torch.Tensor, p_BK: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """Return the class-similarity matrix after a batch (paper section 4.5).

    Row k becomes m · row k + (1 − m) · mean of p over the batch's samples of class k, with m = 0.9.

    Args:
        similarity_KK: The matrix before the batch; each row is a probability distribution. Not modified.
        p_BK: The auxiliary's probabilities at temperature τ, of the same dtype.
        labels_B: int64 class indices; the rows of absent classes do not change.
    """
    classes_K1 = torch.arange(len(similarity_KK), device=labels_B.device)[:, None]
    members_KB = (classes_K1 == labels_B).to(p_BK.dtype)
    counts_K1 = members_KB.sum(dim=1, keepdim=True)
    # matrix product: fixed summation order, unlike a scatter
    means_KK = members_KB @ p_BK / counts_K1.clamp(min=1)
    updated_KK = SIMILARITY_MOMENTUM * similarity_KK + (1 - SIMILARITY_MOMENTUM) * means_KK
    return torch.where(counts_K1 > 0, updated_KK, similarity_KK)


def virtual_teacher(num_classes: int) -> torch.Tensor:
    """Return the softened probabilities (K, K), float64, of a virtual teacher that is 99 % correct; row: label.

    Args:
        num_classes: K ≥ 2.
    """
    other = (1 - VIRTUAL_CONFIDENCE) / (num_classes - 1)
    probabilities_KK = torch.full((num_classes, num_classes), other, dtype=torch.float64).fill_diagonal_(
        VIRTUAL_CONFIDENCE
    )
    return F.softmax(probabilities_KK / VIRTUAL_TEMPERATURE, dim=1)
