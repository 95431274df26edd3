"""Exponential moving averages of the student: the auxiliary (eq. 7), and the weights that are delivered."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def ema_update(
    auxiliary: nn.Module, student: nn.Module, beta: float | torch.Tensor, condition: torch.Tensor | None = None
) -> None:
    """Update θ_S′ ← β θ_S′ + (1 − β) θ_S in place, in the dtype of the parameters (eq. 7).

    Floating-point buffers are averaged too; integer buffers are copied. The average starts from the auxiliary's own
    initial weights, unlike the averages of ``torch.optim.swa_utils`` and timm, which start as copies of the model.

    Args:
        auxiliary: The network to update (S′).
        student: The network to average (S), of the same architecture.
        beta: EMA decay in [0, 1]; 1 freezes the auxiliary. A float64 scalar on the device if it changes between steps.
        condition: bool scalar on the device; if false, the auxiliary does not change, even if the student contains NaN.
            None: always update.
    """
    auxiliary_tensors: list[torch.Tensor] = list(auxiliary.parameters())
    student_tensors: list[torch.Tensor] = list(student.parameters())
    for auxiliary_tensor, student_tensor in zip(auxiliary.buffers(), student.buffers(), strict=True):
        if auxiliary_tensor.is_floating_point():
            auxiliary_tensors.append(auxiliary_tensor)
            student_tensors.append(student_tensor)
        else:
            auxiliary_tensor.copy_(
                student_tensor if condition is None else torch.where(condition, student_tensor, auxiliary_tensor)
            )
    if condition is not None:
        # torch.where instead of a factor of zero, since zero times NaN is NaN
        student_tensors = [
            torch.where(condition, student_tensor, auxiliary_tensor)
            for auxiliary_tensor, student_tensor in zip(auxiliary_tensors, student_tensors, strict=True)
        ]
    if isinstance(beta, torch.Tensor):  # lerp would wait for its value
        differences = torch._foreach_sub(student_tensors, auxiliary_tensors)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_mul_(differences, (1 - beta).to(differences[0].dtype))  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_(auxiliary_tensors, differences)  # pyright: ignore[reportPrivateImportUsage]
    else:
        torch._foreach_lerp_(auxiliary_tensors, student_tensors, 1 - beta)  # pyright: ignore[reportPrivateImportUsage]


def unbiased_beta(beta: float, number: torch.Tensor) -> torch.Tensor:
    """Return the smoothing β_t of update t with which the average is Σ_i β^(t−i) θ_i / Σ_i β^(t−i), i from 1 to t.

    β_t = β (1 − β^(t−1)) / (1 − β^t), the bias correction of Adam (Kingma and Ba, ICLR 2015). It is 0 at the first
    update, so that the initial weights of the average do not count.

    Args:
        beta: EMA decay in (0, 1).
        number: Scalar t ≥ 1 on the device.

    Returns:
        float64 scalar on the device.
    """
    t = number.double()
    return beta * (1 - beta ** (t - 1)) / (1 - beta**t)
