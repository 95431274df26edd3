"""Means over the images of an epoch, accumulated on the device so that no step waits for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class RunningMeans:
    """Means of several quantities over the images of an epoch so far.

    Args:
        names: The quantities, as fields of ``EpochRecord``.
        device: Where the steps are computed.
        state: The result of ``state`` in the middle of this epoch; empty at its start.
    """

    def __init__(self, names: Sequence[str], device: torch.device, state: tuple[float, ...] = ()) -> None:
        *sums, self.count = state or (*(0.0 for _ in names), 0)
        self.names = tuple(names)
        self.sums = torch.tensor(sums, dtype=torch.float64, device=device)

    def state(self) -> tuple[float, ...]:
        """Return what a checkpoint needs to continue: the sums and the number of images."""
        return (*self.sums.tolist(), self.count)

    def add(self, sums: Sequence[torch.Tensor], num_images: int) -> None:
        """Add a batch.

        Args:
            sums: Of each quantity the float64 scalar sum over the images of the batch, on the device.
            num_images: B.
        """
        self.sums += torch.stack(list(sums))
        self.count += num_images

    def means(self) -> dict[str, float]:
        """Return each mean by name; waits for the device."""
        return dict(zip(self.names, (self.sums / self.count).tolist(), strict=True))
