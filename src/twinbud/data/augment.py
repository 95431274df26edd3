"""Random crop, flip, rotation, intensity and cutout, as a pure function of (seed, epoch, sample).

All random numbers of an epoch are drawn at once and each sample uses its own row, so that neither the order of samples
nor the number of workers changes how an image is augmented. Pixels are cropped and resized in batches, on their device.

Shape legend: N samples, B batch, C channels (3), S image side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from twinbud.core.rng import numpy_stream
from twinbud.data.mixing import inside_boxes

_ATTEMPTS = 10
_MAX_LOG_RATIO = math.log(4 / 3)


@dataclass(frozen=True, eq=False)
class Views:
    """Augmentation of N samples in one epoch; None for a part that is off.

    Attributes:
        scale_N2: float32 width and height of the crop, as fractions of the image in (0, 1].
        center_N2: float32 center of the crop, in the [-1, 1] coordinates of ``grid_sample``.
        flip_N: bool, whether the crop is flipped left to right.
        angle_N: float32 counterclockwise rotation about the center of the crop, in radians.
        gain_N2: float32 factors of brightness and contrast.
        erased_N4: float32 left, top, right and bottom of the covered square, as fractions of the crop.
    """

    scale_N2: torch.Tensor
    center_N2: torch.Tensor
    flip_N: torch.Tensor
    angle_N: torch.Tensor | None = None
    gain_N2: torch.Tensor | None = None
    erased_N4: torch.Tensor | None = None

    def __getitem__(self, rows: torch.Tensor) -> Views:
        return self._each(lambda tensor: tensor[rows])

    def to(self, device: torch.device) -> Views:
        """Copy to another device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Views:
        parts = {name: change(tensor) for name, tensor in vars(self).items() if tensor is not None}
        return replace(self, **parts)


def draw_views(
    seed: int,
    epoch: int,
    num_samples: int,
    *,
    crop_scale: float,
    flip: float,
    rotate: float = 0.0,
    brightness: float = 0.0,
    contrast: float = 0.0,
    cutout: float = 0.0,
) -> Views:
    """Draw the views of ``num_samples`` samples for one epoch.

    The crop's area is uniform in [crop_scale, 1] of the image and its aspect ratio log-uniform in [3/4, 4/3], as in
    torchvision's RandomResizedCrop: up to ten attempts until one fits, else the whole image. Row i depends only on
    (seed, epoch, i), not on ``num_samples``, and no part depends on the others.

    Args:
        seed: Seed of the stream ``augmentation``.
        epoch: Epoch, from 1.
        num_samples: N.
        crop_scale: Smallest area of the crop, in (0, 1].
        flip: Probability of a flip, in [0, 1].
        rotate: Largest rotation in degrees; uniform in both directions.
        brightness: Largest deviation of the factor of brightness from 1, in [0, 1); uniform.
        contrast: The same for contrast.
        cutout: Side of the covered square as a share of the crop, in [0, 1); its center is uniform.
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
    angle, *gain, x, y = torch.from_numpy(numpy_stream("augmentation", seed, epoch, "more").random((num_samples, 5))).T
    gain_N2 = 1 + torch.stack([amount * (2 * u - 1) for amount, u in zip((brightness, contrast), gain, strict=True)], 1)
    half = cutout / 2
    return Views(
        scale.float(),
        center.float(),
        uniform[:, -1] < flip,
        angle_N=(math.radians(rotate) * (2 * angle - 1)).float() if rotate else None,
        gain_N2=gain_N2.float() if brightness or contrast else None,
        erased_N4=torch.stack([x - half, y - half, x + half, y + half], dim=1).float() if cutout else None,
    )


def apply_views(images_BCSS: torch.Tensor, views: Views) -> torch.Tensor:
    """Crop, flip, rotate and resize a batch of images (bicubic), then change intensities and cover squares.

    What a rotated crop shows of the outside is reflected at the border. Brightness multiplies the pixels and contrast
    moves them away from the mean of the image, alike in all channels, so that no color shifts; both clip to [0, 255].
    A square is covered by the mean of each channel (cutout, DeVries and Taylor, arXiv 1708.04552).

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
    if views.angle_N is not None:
        cos, sin = views.angle_N.cos(), views.angle_N.sin()
        rotation_B22 = torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1)
        theta[:, :, :2] = rotation_B22 @ theta[:, :, :2]
    theta[:, :, 2] = views.center_N2
    grid = F.affine_grid(theta, list(images_BCSS.shape), align_corners=False)
    seen = F.grid_sample(images_BCSS.float(), grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    seen.clamp_(0, 255)
    if views.gain_N2 is not None:
        brightness, contrast = views.gain_N2.T[:, :, None, None, None]
        seen = (seen * brightness).clamp_(0, 255)
        seen = seen.lerp(seen.mean(dim=(1, 2, 3), keepdim=True), 1 - contrast).clamp_(0, 255)
    if views.erased_N4 is not None:
        inside = inside_boxes(views.erased_N4, seen.shape[-1])
        seen = seen.lerp(seen.mean(dim=(2, 3), keepdim=True), inside.expand_as(seen))
    return seen


@dataclass(frozen=True, eq=False)
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
