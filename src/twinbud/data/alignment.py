"""Align pairs of images by shift and scale, so that a crop can be compared with the image that it was cut from.

The method is that of Lucas and Kanade (1981): Gauss-Newton steps on the squared difference, here with a gain and an
offset of the gray values beside shift and scale, first on blurred images, then on sharper ones.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

_BLURS = (3.0, 1.0)
_STEPS = 4
_DAMPING = 1e-3
_MAX_SCALE, _MAX_SHIFT = 0.15, 0.2
"""Largest change of scale, and largest shift as a share of half the side: what a slight crop needs."""
_MARGIN = 4
"""Pixels at the border that are not compared: an aligned image may lack them."""


def aligned_pairs(moving: torch.Tensor, fixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Align each moving image to its fixed image.

    Args:
        moving: (B, S, S) float32.
        fixed: (B, S, S) float32.

    Returns:
        The moving images after alignment, and the fixed ones, both without their border: (B, S - 8, S - 8).
    """
    scale = torch.ones(len(moving), 2)
    shift = torch.zeros(len(moving), 2)
    for blur in _BLURS:
        smooth_moving, smooth_fixed = (_blurred(images, blur) for images in (moving, fixed))
        for _ in range(_STEPS):
            step = _step(_warp(smooth_moving, scale, shift), smooth_fixed)
            shift = (shift + scale * step[:, 2:]).clamp(-_MAX_SHIFT, _MAX_SHIFT)
            scale = (scale * (1 + step[:, :2])).clamp(1 - _MAX_SCALE, 1 + _MAX_SCALE)
    inner = slice(_MARGIN, -_MARGIN)
    return _warp(moving, scale, shift)[:, inner, inner].contiguous(), fixed[:, inner, inner].contiguous()


def _warp(images: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Return images read at ``scale * x + shift``, in coordinates from -1 to 1."""
    theta = torch.cat([torch.diag_embed(scale), shift[:, :, None]], 2)
    grid = F.affine_grid(theta, [len(images), 1, *images.shape[1:]], align_corners=False)
    return F.grid_sample(images[:, None], grid, padding_mode="border", align_corners=False)[:, 0]


def _step(warped: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """Return (B, 4): the change of horizontal and vertical scale and shift that reduces the difference most."""
    size = warped.shape[-1]
    inner = slice(_MARGIN, -_MARGIN)
    line = (torch.arange(size) + 0.5) * 2 / size - 1
    by_y, by_x = torch.gradient(warped, spacing=2 / size, dim=(1, 2))
    columns = [by_x * line, by_y * line[:, None], by_x, by_y, warped, torch.ones_like(warped)]
    design = torch.stack([column[:, inner, inner].flatten(1) for column in columns], 2)
    difference = (fixed - warped)[:, inner, inner].flatten(1)
    length = design.norm(dim=1).clamp_min(1e-6)
    design = design / length[:, None]
    normal = design.mT @ design + _DAMPING * torch.eye(design.shape[2])
    solution = torch.linalg.solve(normal, design.mT @ difference[:, :, None])[:, :, 0]
    return (solution / length)[:, :4].clamp(-0.1, 0.1)


def _blurred(images: torch.Tensor, sigma: float) -> torch.Tensor:
    radius = round(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(images[:, None], [radius] * 4, mode="replicate")
    across = F.conv2d(padded, kernel[None, None, None, :])
    return F.conv2d(across, kernel[None, None, :, None])[:, 0]
