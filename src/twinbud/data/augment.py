"""Random resized crop and horizontal flip, as a pure function of (seed, epoch, sample).

All draws of an epoch are made at once and each sample reads its own row, so that neither the order of samples
nor the number of workers changes what happens to an image. The pixels are cut and scaled in batches, on whatever
device they live on.

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
    """How each of N samples is seen in one epoch.

    Attributes:
        scale_N2: float32 width and height of the crop, as shares of the image in (0, 1].
        centre_N2: float32 centre of the crop, in [-1, 1] as ``grid_sample`` counts.
        flip_N: bool, whether the crop is mirrored left to right.
    """

    scale_N2: torch.Tensor
    centre_N2: torch.Tensor
    flip_N: torch.Tensor

    def __getitem__(self, rows: torch.Tensor) -> Views:
        return Views(self.scale_N2[rows], self.centre_N2[rows], self.flip_N[rows])

    def to(self, device: torch.device) -> Views:
        """The same on another device."""
        return Views(self.scale_N2.to(device), self.centre_N2.to(device), self.flip_N.to(device))


def draw_views(seed: int, epoch: int, num_samples: int, *, crop_scale: float, flip: float) -> Views:
    """Draw one epoch's views of ``num_samples`` samples.

    The crop's area is uniform in [crop_scale, 1] of the image and its aspect ratio log-uniform in [3/4, 4/3], as in
    torchvision's RandomResizedCrop: up to ten attempts until one fits, then the whole image. Row i depends on
    (seed, epoch, i) alone, however many rows are drawn.
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
    centre = (1 - scale) * (2 * uniform[:, -3:-1] - 1)
    return Views(scale.float(), centre.float(), uniform[:, -1] < flip)


def apply_views(images_BCSS: torch.Tensor, views: Views) -> torch.Tensor:
    """Cut, mirror and scale back a batch of images, bicubically.

    Args:
        images_BCSS: uint8 pixels, one channel or three.
        views: One row an image, on the same device.

    Returns:
        float32 pixels in [0, 255], the same shape.
    """
    mirror = torch.where(views.flip_N, -1.0, 1.0)
    theta = torch.zeros(len(images_BCSS), 2, 3, device=images_BCSS.device)
    theta[:, 0, 0] = views.scale_N2[:, 0] * mirror
    theta[:, 1, 1] = views.scale_N2[:, 1]
    theta[:, :, 2] = views.centre_N2
    grid = F.affine_grid(theta, list(images_BCSS.shape), align_corners=False)
    seen = F.grid_sample(images_BCSS.float(), grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return seen.clamp_(0, 255)


@dataclass(frozen=True)
class Normalization:
    """From pixels in [0, 255] of any dtype to a network's float32 input: (pixels / 255 − mean) / std, a channel each.

    A single channel counts for all of them. The constants lie on the device, so that the host need not wait.
    """

    mean_1C11: torch.Tensor
    std_1C11: torch.Tensor

    @classmethod
    def on(cls, device: torch.device, mean: tuple[float, ...], std: tuple[float, ...]) -> Normalization:
        """The normalisation with these constants, one number a channel, for pixels scaled to [0, 1]."""
        return cls(*(torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (mean, std)))

    def __call__(self, pixels_BCSS: torch.Tensor) -> torch.Tensor:
        """Normalise a batch."""
        return (pixels_BCSS.float() / 255 - self.mean_1C11) / self.std_1C11
