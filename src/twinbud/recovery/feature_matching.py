"""Feature matching: train a student to reproduce the features of its frozen teacher, without labels.

Shape legend: B batch, C channels, S image side, L positions, D channels of a residual stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import nn

from twinbud.config.recovery import RecoverTarget
from twinbud.recovery.channel_map import ChannelMap
from twinbud.training.optimizer import Optimizer
from twinbud.training.unlabelled import UnlabelledStep


class FeatureMatchingLoss(nn.Module):
    """Smooth L1 between the layer-normalized final tokens of student and teacher.

    Args:
        channel_map: The student and its teacher, which are not submodules of the loss.
        target: ``all`` compares a linear map of the student's tokens with all of the teacher's channels; the map is
            trained along with the student and then discarded. ``own`` compares the student's tokens with the teacher's
            channels that the student inherits.
        blocks: Whether the residual stream after every block is matched too, always at the inherited channels.
    """

    def __init__(self, channel_map: ChannelMap, *, target: RecoverTarget, blocks: bool) -> None:
        super().__init__()
        names = [pair.name for pair in channel_map.blocks]
        self.blocks = names if blocks else []
        self.last, self.target = names[-1], target
        self.student_stream, self.tokens = channel_map.student_stream, channel_map.recovery.tokens
        self.has_subspace = channel_map.stream_widths[names[-1]] in channel_map.stream_maps
        self.map: nn.Linear | None = None
        if target == "all":
            embedding = channel_map.stream_embedding(names[-1])
            self.map = nn.Linear(embedding.shape[1], embedding.shape[0], device=channel_map.device)
            with torch.no_grad():  # starts as the embedding of the student's channels into the teacher's
                self.map.weight.copy_(embedding)
                self.map.bias.zero_()

    def targets(self, streams: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """Return the targets, (B, L, D) each, from the teacher's streams."""
        *stream, last, final = map(self.tokens, self._places(streams, at_least=2))
        inner = [self.student_stream(name, tokens) for name, tokens in zip(self.blocks, [*stream, last], strict=False)]
        if self.target == "own":  # the gain of the final norm belongs to channels, so a subspace is read before it
            final = self.student_stream(self.last, last if self.has_subspace else final)
        return [normalized(tokens) for tokens in (*inner, final)]

    def forward(self, streams: Iterable[torch.Tensor], targets: list[torch.Tensor]) -> torch.Tensor:
        """Return the mean loss of the final tokens, plus the mean of the blocks' losses if ``blocks`` is on."""
        places = [normalized(self.tokens(stream)) for stream in self._places(streams, at_least=1)]
        if self.map is not None:
            places[-1] = self.map(places[-1]).float()
        *inner, end = [F.smooth_l1_loss(features, target) for features, target in zip(places, targets, strict=True)]
        return end + torch.stack(inner).mean() if inner else end

    def _places(self, streams: Iterable[torch.Tensor], *, at_least: int) -> Iterable[torch.Tensor]:
        """Return the streams that are compared, at least so many from the end; the others are freed at once."""
        return streams if self.blocks else deque(streams, maxlen=at_least)


def normalized(tokens: torch.Tensor) -> torch.Tensor:
    """Normalize each position to mean 0 and variance 1 over its channels, in float32."""
    return F.layer_norm(tokens.float(), tokens.shape[-1:])


class RecoveryStep(UnlabelledStep):
    """One optimizer step of feature matching.

    Args:
        channel_map: The student, which is trained, and its frozen teacher.
        feature_matching: The loss.
        refit: Results of the least-squares refit, as tensors by name, which checkpoints keep along.
        weight_decay: AdamW's weight decay.
        layer_decay: See ``Optimizer``.
        clip_norm: Largest gradient norm, or None for no clipping.
        bf16: Whether the networks compute in bf16 autocast.
        steps_per_epoch: For errors, which name epoch and batch.
    """

    def __init__(
        self,
        channel_map: ChannelMap,
        feature_matching: FeatureMatchingLoss,
        *,
        refit: Mapping[str, torch.Tensor],
        weight_decay: float,
        layer_decay: float,
        clip_norm: float | None,
        bf16: bool,
        steps_per_epoch: int,
    ) -> None:
        self.channel_map, self.feature_matching = channel_map, feature_matching
        self.bf16 = bf16
        networks: dict[str, nn.Module] = {"student": channel_map.student}
        if feature_matching.map is not None:
            networks["map"] = feature_matching.map
        optimizer = Optimizer(
            networks,
            weight_decay=weight_decay,
            layer_decay=layer_decay,
            clip_norm=clip_norm,
            steps_per_epoch=steps_per_epoch,
            advice="lower --recover-learning-rate",
        )
        super().__init__(optimizer, refit)

    def loss(self, images_BCSS: torch.Tensor) -> torch.Tensor:
        """See ``UnlabelledStep``."""
        channel_map = self.channel_map
        with torch.autocast(self.optimizer.device.type, torch.bfloat16, enabled=self.bf16):
            with torch.no_grad():
                targets = self.feature_matching.targets(channel_map.teacher_streams(images_BCSS))
            return self.feature_matching(channel_map.student_streams(images_BCSS), targets)
