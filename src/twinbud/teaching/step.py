"""The step of teaching: the learner's features approach those of the source for the same view of an image.

Shape legend: B batch, C channels, S image side, H and W sides of the map, D channels of the map, P channels of the
vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn

from twinbud.config.schema import TrainingConfig
from twinbud.core.rng import stream_seed
from twinbud.models.families.base import TimmModel
from twinbud.teaching.features import Features, FeatureShape, extract_features
from twinbud.teaching.source import Source, Whitening
from twinbud.training.batch_norm import running_statistics
from twinbud.training.optimizer import Optimizer


class FeatureMaps(nn.Module):
    """Linear maps from the learner's features to the source's: trained along, and discarded afterwards.

    The learner's map is normalized at each position first, as a classifier's norm does it, so that its scale is free.

    Args:
        learner: Shape of the learner's features.
        source: Shape of the source's.
        seed: Seed of the initial weights.
    """

    def __init__(self, learner: FeatureShape, source: FeatureShape, *, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed("teaching", seed, "maps"))
            self.spatial = nn.Linear(learner.num_channels, source.num_channels)
            self.pooled = nn.Linear(learner.num_pooled, source.num_pooled)

    def forward(self, features: Features) -> Features:
        """Map features of the learner, (B, D, H, W) and (B, P), to those of the source, with the same legend."""
        tokens_BHWD = features.spatial_BDHW.permute(0, 2, 3, 1)
        tokens_BHWD = F.layer_norm(tokens_BHWD, tokens_BHWD.shape[-1:])
        return Features(self.spatial(tokens_BHWD).permute(0, 3, 1, 2), self.pooled(features.pooled_BP))


def feature_loss(found: Features, targets: Features) -> torch.Tensor:
    """Return the mean of two smooth L1 losses, of the map and of the vector, in float32: a scalar."""
    losses = [F.smooth_l1_loss(one.float(), other) for one, other in zip(found, targets, strict=True)]
    return torch.stack(losses).mean()


class TeachingStep:
    """One optimizer step on images without labels.

    Args:
        learner: The network to teach, in training mode, on its device.
        maps: Maps to the features of the source, on the same device.
        source: The source.
        whitening: Of the source's features.
        config: Weight decay, clipping and learning rates.
        bf16: Whether the learner computes in bf16 autocast.
        kept: Further tensors by name, which checkpoints keep along.
        steps_per_epoch: For errors, which name epoch and batch.
    """

    def __init__(
        self,
        learner: TimmModel,
        maps: FeatureMaps,
        source: Source,
        whitening: Whitening,
        config: TrainingConfig,
        *,
        bf16: bool,
        kept: Mapping[str, torch.Tensor],
        steps_per_epoch: int,
    ) -> None:
        self.learner, self.maps, self.source, self.whitening = learner, maps, source, whitening
        self.bf16, self.kept = bf16, dict(kept)
        self.optimizer = Optimizer(
            {"learner": learner, "maps": maps},
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
            steps_per_epoch=steps_per_epoch,
        )

    def __call__(self, images_BCSS: torch.Tensor, learning_rate: float) -> torch.Tensor:
        """Take one step.

        Args:
            images_BCSS: Normalized float32 images; both networks get the same view.
            learning_rate: Learning rate of this step.

        Returns:
            The loss before the update, on the device.

        Raises:
            TwinbudError: See ``Optimizer.step``.
        """
        optimizer = self.optimizer
        optimizer.set_rate(learning_rate)
        targets = self.whitening(self.source.features(images_BCSS))
        # the variance of one image would be that of its pixels alone; of one value, it does not exist
        norms = running_statistics(self.learner) if len(images_BCSS) == 1 else nullcontext()
        with torch.autocast(optimizer.device.type, torch.bfloat16, enabled=self.bf16), norms:
            found = self.maps(extract_features(self.learner, images_BCSS))
        loss = feature_loss(found, targets)
        optimizer.step(loss)
        optimizer.num_steps += 1
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
