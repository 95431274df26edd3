"""Random resized crop and horizontal flip, as a pure function of (seed, epoch, sample).

All random numbers of an epoch are drawn at once and each sample uses its own row, so that neither the order of samples
nor the number of workers changes how an image is augmented. Pixels are cropped and resized in batches, on their device.

Shape legend: N samples, B batch, C channels (3), S image side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from twinbud.core.rng import numpy_stream

_ATTEMPTS = 10
_MAX_LOG_RATIO = math.log(4 / 3)


@dataclass(frozen=True)
class Views:
    """Crop and flip of N samples in one epoch.

    Attributes:
        scale_N2: float32 width and height of the crop, as fractions of the image in (0, 1].
        center_N2: float32 center of the crop, in the [-1, 1] coordinates of ``grid_sample``.
        flip_N: bool, whether the crop is flipped left to right.
    """

    scale_N2: torch.Tensor
    center_N2: torch.Tensor
    flip_N: torch.Tensor

    def __getitem__(self, rows: torch.Tensor) -> Views:
        return Views(self.scale_N2[rows], self.center_N2[rows], self.flip_N[rows])

    def to(self, device: torch.device) -> Views:
        """Copy to another device."""
        return Views(self.scale_N2.to(device), self.center_N2.to(device), self.flip_N.to(device))


def draw_views(seed: int, epoch: int, num_samples: int, *, crop_scale: float, flip: float) -> Views:
    """Draw the views of ``num_samples`` samples for one epoch.

    The crop's area is uniform in [crop_scale, 1] of the image and its aspect ratio log-uniform in [3/4, 4/3], as in
    torchvision's RandomResizedCrop: up to ten attempts until one fits, else the whole image. Row i depends only on
    (seed, epoch, i), not on ``num_samples``.
    """
    draws = numpy_stream("augmentation", seed, epoch).random((num_samples, 2 * _ATTEMPTS + 3))
    uniform = torch.from_numpy(draws)
    area = crop_scale + (1 - crop_scale) * uniform[:, :_ATTEMPTS]
    log_ratio = _MAX_LOG_RATIO * (2 * uniform[:, _ATTEMPTS : 2 * _ATTEMPTS] - 1)
    attempts = torch.stack([(area * log_ratio.exp()).sqrt(), (area / log_ratio.exp()).sqrt()], dim=-1)
    fits = (attempts <= 1).all(dim=-1)
    first = fits.int().argmax(dim=1)
    chosen = attempts[torch.arange(num_samples), first]
    scale = torch.where(fits.any(dim=1, keepdim=True), chosen, torch.ones_like(chosen))
    center = (1 - scale) * (2 * uniform[:, -3:-1] - 1)
    return Views(scale.float(), center.float(), uniform[:, -1] < flip)


def apply_views(images_BCSS: torch.Tensor, views: Views) -> torch.Tensor:
    """Crop, flip and resize a batch of images (bicubic).

    Args:
        images_BCSS: uint8 pixels, one channel or three.
        views: One row per image, on the same device.

    Returns:
        float32 pixels in [0, 255], the same shape.
    """
    mirror = torch.where(views.flip_N, -1.0, 1.0)
    theta = torch.zeros(len(images_BCSS), 2, 3, device=images_BCSS.device)
    theta[:, 0, 0] = views.scale_N2[:, 0] * mirror
    theta[:, 1, 1] = views.scale_N2[:, 1]
    theta[:, :, 2] = views.center_N2
    grid = F.affine_grid(theta, list(images_BCSS.shape), align_corners=False)
    seen = F.grid_sample(images_BCSS.float(), grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return seen.clamp_(0, 255)


@dataclass(frozen=True)
class Normalization:
    """Converts pixels in [0, 255] of any dtype to float32 input of a network: ``(pixels / 255 - mean) / std``.

    Gray images (one channel) become three channels. The constants are on the device, so that the host need not wait.
    """

    mean_1C11: torch.Tensor
    std_1C11: torch.Tensor

    @classmethod
    def on(cls, device: torch.device, mean: tuple[float, ...], std: tuple[float, ...]) -> Normalization:
        """Create a normalization with these constants, one number per channel, for pixels scaled to [0, 1]."""
        return cls(*(torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (mean, std)))

    def __call__(self, pixels_BCSS: torch.Tensor) -> torch.Tensor:
        """Normalize a batch."""
        return (pixels_BCSS.float() / 255 - self.mean_1C11) / self.std_1C11
