"""The source: a frozen network whose features are the targets.

Shape legend: B batch, C channels, S image side, H and W sides of the learner's map, D channels of the source's map, P
channels of its vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import SelectionFamily, TimmModel
from twinbud.models.teacher import TeacherInfo
from twinbud.teaching.features import Features, extract_features

_LARGEST_PATCH = 64
"""Pixels by which an image may grow, so that its side is a multiple of the source's patches."""
_SMALLEST_DEVIATION = 1e-6
"""Of a channel, as a share of the largest one's: channels that hardly vary are not enlarged further."""


def source_image_size(info: TeacherInfo, family: SelectionFamily, template: TimmModel, image_size: int) -> int:
    """Return the smallest size from ``image_size`` up, in pixels, that the source can take.

    Args:
        info: The source.
        family: Its family.
        template: Its shapes.
        image_size: Of the learner.

    Raises:
        TwinbudError: It can take none of about that size.
    """
    own = (template.pretrained_cfg or {}).get("input_size", (3, 0, 0))[-1]
    sizes = [*range(image_size, image_size + _LARGEST_PATCH), *([own] if own > image_size else [])]
    reason: TwinbudError | None = None
    for size in sizes:
        try:
            family.image_arguments(template, size, info.architecture)
        except TwinbudError as error:
            reason = reason or error
        else:
            return size
    assert reason is not None, "the loop tries at least one size"
    raise reason.at("--from")


class Source:
    """The source on the device of training, for views that are preprocessed for the learner.

    Args:
        network: Frozen, in evaluation mode, for images of ``image_size`` pixels in the learner's normalization.
        image_size: Side of its images; views of another size are resized.
        grid: (H, W) of the learner's map, to which the source's map is resampled.
        bf16: Whether it computes in bf16 autocast.
    """

    def __init__(self, network: TimmModel, *, image_size: int, grid: tuple[int, int], bf16: bool) -> None:
        self.network, self.image_size, self.grid, self.bf16 = network, image_size, grid, bf16

    @torch.no_grad()
    def features(self, images_BCSS: torch.Tensor) -> Features:
        """Return its features, float32: (B, D, H, W) on the learner's grid, and (B, P)."""
        if images_BCSS.shape[-1] != self.image_size:
            images_BCSS = _resampled(images_BCSS, (self.image_size, self.image_size), "bicubic")
        with torch.autocast(images_BCSS.device.type, torch.bfloat16, enabled=self.bf16):
            found = extract_features(self.network, images_BCSS)
        return Features(_resampled(found.spatial_BDHW.float(), self.grid, "bilinear"), found.pooled_BP.float())


def _resampled(maps: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    if tuple(maps.shape[2:]) == size:
        return maps
    return F.interpolate(maps, size, mode=mode, antialias=True, align_corners=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class Whitening:
    """Mean and standard deviation of each channel of the source, so that every channel counts alike in the loss."""

    spatial_mean_D: torch.Tensor
    spatial_std_D: torch.Tensor
    pooled_mean_P: torch.Tensor
    pooled_std_P: torch.Tensor

    @classmethod
    def of(cls, features: Features, num_images: int) -> Whitening:
        """Measure the channels over the first ``num_images`` images, and all positions of their maps."""
        spatial_mean_D, spatial_std_D = _mean_and_deviation(features.spatial_BDHW[:num_images].flatten(2))
        pooled_mean_P, pooled_std_P = _mean_and_deviation(features.pooled_BP[:num_images, :, None])
        return cls(
            spatial_mean_D=spatial_mean_D,
            spatial_std_D=spatial_std_D,
            pooled_mean_P=pooled_mean_P,
            pooled_std_P=pooled_std_P,
        )

    def __call__(self, features: Features) -> Features:
        """Return features whose channels have mean 0 and variance 1 over the images that were measured."""
        mean_D11, std_D11 = self.spatial_mean_D[:, None, None], self.spatial_std_D[:, None, None]
        return Features(
            (features.spatial_BDHW - mean_D11) / std_D11, (features.pooled_BP - self.pooled_mean_P) / self.pooled_std_P
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors by name, for a checkpoint."""
        return {f"whitening.{field.name}": getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Whitening:
        """Read what ``tensors`` returned."""
        return cls(**{field.name: tensors[f"whitening.{field.name}"] for field in fields(cls)})

    def to(self, device: torch.device) -> Whitening:
        """Copy to another device."""
        return Whitening(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def _mean_and_deviation(features_BDL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation (D,) of each channel, float32, summed in float64 channel by channel."""
    means = torch.stack([channel.double().mean() for channel in features_BDL.unbind(dim=1)])
    stds = torch.stack([channel.double().std(correction=0) for channel in features_BDL.unbind(dim=1)])
    floor = (_SMALLEST_DEVIATION * stds.max()).clamp_min(torch.finfo(torch.float32).tiny)
    return means.float(), stds.clamp_min(floor).float()
