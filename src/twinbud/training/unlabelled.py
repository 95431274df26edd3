"""Training on images without labels: the images, and the loop that recovery and teaching share.

Shape legend: N samples, B batch, C channels, S image side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from twinbud.data.augment import Views
from twinbud.data.image_store import ImageSubset
from twinbud.data.preprocessing import Preprocessing
from twinbud.training.epoch_loop import EpochLoop
from twinbud.training.optimizer import Optimizer
from twinbud.training.running_means import RunningMeans


@dataclass(frozen=True, kw_only=True, eq=False)
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


class UnlabelledStep(ABC):
    """An optimizer step on images alone.

    Args:
        optimizer: Of the networks that the loss trains.
        kept: Further tensors by name, which checkpoints keep along.
    """

    def __init__(self, optimizer: Optimizer, kept: Mapping[str, torch.Tensor]) -> None:
        self.optimizer, self.kept = optimizer, dict(kept)

    @abstractmethod
    def loss(self, images_BCSS: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of normalized float32 images, a scalar with a gradient."""

    def __call__(self, images_BCSS: torch.Tensor, learning_rate: float) -> torch.Tensor:
        """Take one step.

        Args:
            images_BCSS: Normalized float32 images; the trained network and its target get the same view.
            learning_rate: Learning rate of this step.

        Returns:
            The loss before the update, on the device.

        Raises:
            TwinbudError: See ``Optimizer.step``.
        """
        self.optimizer.set_rate(learning_rate)
        loss = self.loss(images_BCSS)
        self.optimizer.step(loss)
        self.optimizer.num_steps += 1
        return loss.detach()

    @property
    def num_steps(self) -> int:
        """Number of steps so far."""
        return self.optimizer.num_steps

    def tensors(self) -> dict[str, torch.Tensor]:
        """See ``Optimizer.tensors``."""
        return {**self.optimizer.tensors(), **self.kept}

    def restore(self, tensors: dict[str, torch.Tensor], num_steps: int) -> None:
        """See ``Optimizer.restore``."""
        self.kept = {name: tensors[name] for name in self.kept}
        self.optimizer.restore(tensors, num_steps)

    def check(self) -> None:
        """See ``Optimizer.check``."""
        self.optimizer.check()


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
