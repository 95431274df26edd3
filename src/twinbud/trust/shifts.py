"""Changes of images that a check for novelty should notice, on the pixels that a network gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from twinbud.core.rng import stream_seed

Shift = Callable[[torch.Tensor], torch.Tensor]
_NOISE_DEVIATION = 40.0
MAX_SHIFTED_IMAGES = 200
"""Test images on which the novelty threshold is checked against changes, at equal distances."""


def _noisy(images_NCSS: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(stream_seed("trust", 0, "noise"))
    noise_NCSS = torch.randn(images_NCSS.shape, generator=generator) * _NOISE_DEVIATION
    return (images_NCSS.float() + noise_NCSS).round().clamp(0, 255).byte()


SHIFTS: Mapping[str, Shift] = {
    "noise": _noisy,
    "inverted": lambda images_NCSS: 255 - images_NCSS,
    "turned by 90°": lambda images_NCSS: images_NCSS.rot90(1, (2, 3)),
    "upside down": lambda images_NCSS: images_NCSS.flip(2),
    "narrower window": lambda images_NCSS: ((images_NCSS.float() - 64) * 2).round().clamp(0, 255).byte(),
}
"""By name, functions of uint8 pixels (N, C, S, S): normal noise with a standard deviation of 40, black and white
exchanged, a quarter turn, a reflection, and the gray values from 64 to 191 spread over the whole range."""
