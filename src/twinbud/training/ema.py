"""S′ follows S as an exponential moving average (eq. 7)."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def ema_update(auxiliary: nn.Module, student: nn.Module, beta: float, condition: torch.Tensor | None = None) -> None:
    """θ_S′ ← β θ_S′ + (1 − β) θ_S, in place, in the parameters' own dtype (eq. 7).

    Floating-point buffers are averaged likewise; counters are copied. S′ keeps the weights it was built with at the
    start, unlike the averages of ``torch.optim.swa_utils`` and timm, which begin as copies of S.

    Args:
        auxiliary: S′.
        student: S, of the same architecture.
        beta: Smoothing in [0, 1]; 1 freezes S′.
        condition: A bool scalar on the device: where it is false, S′ stays as it is, whatever S holds. None: always.
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
        # a choice and not a factor of zero: zero times NaN is NaN
        student_tensors = [
            torch.where(condition, student_tensor, auxiliary_tensor)
            for auxiliary_tensor, student_tensor in zip(auxiliary_tensors, student_tensors, strict=True)
        ]
    torch._foreach_lerp_(auxiliary_tensors, student_tensors, 1 - beta)  # pyright: ignore[reportPrivateImportUsage]
