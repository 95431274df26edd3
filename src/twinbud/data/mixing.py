"""Mixup and CutMix, as a pure function of (seed, epoch, sample) and of the batch.

Both mix each image with the image before it in its batch; the first one is mixed with the last. Mixup (Zhang et al.,
ICLR 2018) blends the whole image, CutMix (Yun et al., ICCV 2019) replaces a rectangle. Both are one formula,
x + w (x′ − x), where w is 0 outside a box and constant inside it.

Shape legend: N samples, B batch, C channels (3), S image side, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from twinbud.core.rng import numpy_stream


@dataclass(frozen=True, eq=False)
class Mixing:
    """How each of N samples is mixed in one epoch.

    Attributes:
        box_N4: float32 left, top, right and bottom of the box, as fractions of the image in [0, 1].
        weight_N: float32 weight of the other image inside the box, in [0, 1].
    """

    box_N4: torch.Tensor
    weight_N: torch.Tensor

    def __getitem__(self, rows: torch.Tensor) -> Mixing:
        return Mixing(self.box_N4[rows], self.weight_N[rows])

    def to(self, device: torch.device) -> Mixing:
        """Copy to another device."""
        return Mixing(self.box_N4.to(device), self.weight_N.to(device))


def draw_mixing(seed: int, epoch: int, num_samples: int, *, mixup: float, cutmix: float) -> Mixing:
    """Draw how each sample is mixed in one epoch.

    With both, each sample gets one of them with equal probability, as in timm. Row i depends only on (seed, epoch, i).

    Args:
        seed: Seed of the stream ``mixing``.
        epoch: Epoch, from 1.
        num_samples: N.
        mixup: Parameter α ≥ 0 of Beta(α, α), the distribution of mixup's weight; 0: no mixup.
        cutmix: Parameter α ≥ 0 of Beta(α, α), the distribution of CutMix's area before it is clipped; 0: no CutMix.
    """
    choice_N, x_N, y_N = numpy_stream("mixing", seed, epoch).random((num_samples, 3)).T
    is_cut_N = choice_N < (0.5 if mixup else 1.0) if cutmix else np.zeros(num_samples, dtype=bool)
    blended_N, area_N = (
        numpy_stream("mixing", seed, epoch, name).beta(alpha or 1.0, alpha or 1.0, num_samples)
        for name, alpha in (("mixup", mixup), ("cutmix", cutmix))
    )
    half_N = np.sqrt(area_N) / 2
    cut_N4 = np.stack([x_N - half_N, y_N - half_N, x_N + half_N, y_N + half_N], axis=1).clip(0, 1)
    box_N4 = np.where(is_cut_N[:, None], cut_N4, [0.0, 0.0, 1.0, 1.0])
    weight_N = np.where(is_cut_N, 1.0, blended_N if mixup else 0.0)
    return Mixing(torch.from_numpy(box_N4).float(), torch.from_numpy(weight_N).float())


def mix(images_BCSS: torch.Tensor, labels_BK: torch.Tensor, mixing: Mixing) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix each image and its label with those before it in the batch; a batch of one stays as it is.

    Args:
        images_BCSS: Floating-point images.
        labels_BK: Probabilities of the classes.
        mixing: One row per image, on the same device.

    Returns:
        The mixed images, and labels in which the other image counts by its share of the mixed one.
    """
    share_B1 = _weights(images_BCSS, mixing).mean(dim=(2, 3))
    return mix_images(images_BCSS, mixing), labels_BK + share_B1 * (labels_BK.roll(1, dims=0) - labels_BK)


def mix_images(images_BCSS: torch.Tensor, mixing: Mixing) -> torch.Tensor:
    """Mix each image with the one before it in the batch; see ``mix``."""
    return images_BCSS + _weights(images_BCSS, mixing) * (images_BCSS.roll(1, dims=0) - images_BCSS)


def _weights(images_BCSS: torch.Tensor, mixing: Mixing) -> torch.Tensor:
    """Return the weight of the other image for each pixel, (B, 1, S, S)."""
    return inside_boxes(mixing.box_N4, images_BCSS.shape[-1]) * mixing.weight_N.view(-1, 1, 1, 1)


def inside_boxes(box_B4: torch.Tensor, image_size: int) -> torch.Tensor:
    """Return float32 (B, 1, S, S): 1 where the center of a pixel is inside the box, else 0.

    Args:
        box_B4: Left, top, right and bottom, as fractions of the image.
        image_size: S, in pixels.
    """
    centers_S = (torch.arange(image_size, device=box_B4.device) + 0.5) / image_size
    left_B1, top_B1, right_B1, bottom_B1 = box_B4.split(1, dim=1)
    columns_BS = (left_B1 <= centers_S) & (centers_S < right_B1)
    rows_BS = (top_B1 <= centers_S) & (centers_S < bottom_B1)
    return (rows_BS[:, None, :, None] & columns_BS[:, None, None, :]).float()
