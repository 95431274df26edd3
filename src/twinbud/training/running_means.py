"""What an epoch adds up to."""

from __future__ import annotations

from typing import Any

import torch

from twinbud.training.train_step import StepResult


class EpochMeans:
    """Sums of an epoch's losses and right answers, kept on the device so that no step waits for them.

    Args:
        device: Where the steps are taken.
        state: What ``state`` gave in the middle of this epoch; empty at its start.
        has_skd: Whether the loss has soft targets.
    """

    def __init__(self, device: torch.device, state: tuple[float, ...], *, has_skd: bool) -> None:
        *values, self.count = state or (0.0, 0.0, 0.0, 0.0, 0)
        self.values = torch.tensor(values, dtype=torch.float64, device=device)
        self.has_skd = has_skd

    def state(self) -> tuple[float, ...]:
        """What a checkpoint needs to go on from here."""
        return (*self.values.tolist(), self.count)

    def add(self, result: StepResult, size: int) -> None:
        """Count a step of ``size`` images."""
        losses = result.losses
        parts = (losses.total, losses.ce, losses.ce if losses.skd is None else losses.skd)
        means = torch.stack([part.double() for part in parts])
        self.values[:3] += means * size
        self.values[3] += result.num_correct
        self.count += size

    def means(self) -> dict[str, Any]:
        """Means over the images so far, as an ``EpochRecord`` names them; waits for the device."""
        loss, ce, skd, correct = (self.values / self.count).tolist()
        return {"loss": loss, "loss_ce": ce, "loss_skd": skd if self.has_skd else None, "accuracy": correct}
