"""Training on images without labels: the images, and the loop that recovery and teaching share.

Shape legend: N samples, B batch, C channels, S image side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from twinbud.data.augment import Views
from twinbud.data.image_store import ImageSubset
from twinbud.data.preprocessing import Preprocessing
from twinbud.training.epoch_loop import EpochLoop, Step
from twinbud.training.running_means import RunningMeans


@dataclass(frozen=True, kw_only=True)
class UnlabelledImages:
    """Images without labels.

    Attributes:
        images_NCSS: uint8 pixels, one or three channels; on ``device`` or, where they do not fit there, on the host.
        preprocessing: From decoded images to the input of the networks.
        device: Device of the networks.
    """

    images_NCSS: torch.Tensor | ImageSubset
    preprocessing: Preprocessing
    device: torch.device

    def __len__(self) -> int:
        return len(self.images_NCSS)


class UnlabelledStep(Step, Protocol):
    """An optimizer step on images alone."""

    def __call__(self, images_BCSS: torch.Tensor, learning_rate: float) -> torch.Tensor:
        """Take one step; return the mean loss of the normalized float32 images before the update, on the device."""
        ...


class UnlabelledLoop(EpochLoop[tuple[torch.Tensor, torch.Tensor]]):
    """Epochs of a step on images alone."""

    step: UnlabelledStep

    @property
    def measures(self) -> tuple[str, ...]:
        """The loss alone."""
        return ("loss",)

    def epoch_batches(
        self, order: Sequence[torch.Tensor], views: Views, epoch: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield sample numbers and images."""
        del epoch
        yield from zip(order, self.augmented_batches(order, views), strict=True)

    def train_batch(
        self, batch: tuple[torch.Tensor, torch.Tensor], learning_rate: float, running_means: RunningMeans
    ) -> None:
        """See ``EpochLoop``."""
        rows_B, images_BCSS = batch
        running_means.add([self.step(images_BCSS, learning_rate).double() * len(rows_B)], len(rows_B))
