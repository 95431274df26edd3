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
from twinbud.training.unlabelled import UnlabelledStep


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


class TeachingStep(UnlabelledStep):
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
        self.bf16 = bf16
        optimizer = Optimizer(
            {"learner": learner, "maps": maps},
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
            steps_per_epoch=steps_per_epoch,
        )
        super().__init__(optimizer, kept)

    def loss(self, images_BCSS: torch.Tensor) -> torch.Tensor:
        """See ``UnlabelledStep``."""
        targets = self.whitening(self.source.features(images_BCSS))
        # the variance of one image would be that of its pixels alone; of one value, it does not exist
        norms = running_statistics(self.learner) if len(images_BCSS) == 1 else nullcontext()
        with torch.autocast(self.optimizer.device.type, torch.bfloat16, enabled=self.bf16), norms:
            found = self.maps(extract_features(self.learner, images_BCSS))
        return feature_loss(found, targets)
