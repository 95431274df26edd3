"""Acquisition of a slice: pose, receive field, sharpness, ghosting, noise and intensity window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from twinbud.data.phantom.anatomy import Array


@dataclass(frozen=True, kw_only=True)
class Acquisition:
    """Acquisition parameters of one slice."""

    level_shift: float
    rotation: float
    scale: float
    shear: float
    shift: tuple[float, float]
    bias: tuple[float, float, float, float, float]
    gain: float
    offset: float
    gamma: float
    blur: float
    noise: float
    ghost: float
    ghost_shift: float


def draw_acquisition(generator: np.random.Generator) -> Acquisition:
    """Draw the acquisition parameters of a slice; none of them may depend on the class."""
    uniform, normal = generator.uniform, generator.normal
    return Acquisition(
        level_shift=float(uniform(-0.08, 0.08)),
        rotation=float(np.clip(normal(0, 0.1), -0.25, 0.25)),
        scale=float(uniform(0.37, 0.475)),
        shear=float(normal(0, 0.03)),
        shift=(float(normal(0, 0.02)), float(normal(0, 0.02))),
        bias=tuple(float(v) for v in normal(0, (0.12, 0.12, 0.08, 0.08, 0.08))),  # type: ignore[arg-type]
        gain=float(uniform(0.6, 1.2)),
        offset=float(uniform(-0.03, 0.05)),
        gamma=float(uniform(0.75, 1.25)),
        blur=float(uniform(0.35, 1.2)),
        noise=float(np.exp(uniform(np.log(0.008), np.log(0.045)))),
        ghost=float(max(uniform(-0.06, 0.06), 0)),
        ghost_shift=float(uniform(0.2, 0.5)),
    )


def head_coordinates(acquisition: Acquisition, size: int) -> tuple[Array, Array]:
    """Return the head coordinates of each pixel: two float32 arrays (size, size)."""
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    across, along = grid[None, :] - acquisition.shift[0], grid[:, None] - acquisition.shift[1]
    c, s = np.cos(acquisition.rotation), np.sin(acquisition.rotation)
    x, y = (c * across + s * along) / acquisition.scale, (c * along - s * across) / acquisition.scale
    return (x + acquisition.shear * y).astype(np.float32), y.astype(np.float32)


def acquire(image: Array, acquisition: Acquisition, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Apply receive field, blur, ghosting, Rician noise and window to intensities in [0, 1]; returns uint8."""
    size = image.shape[0]
    grid = np.linspace(-1, 1, size, dtype=np.float32)
    u, v = grid[None, :], grid[:, None]
    b = acquisition.bias
    image = image * np.exp(b[0] * u + b[1] * v + b[2] * u * v + b[3] * u * u + b[4] * v * v)
    image = ndimage.gaussian_filter(image, acquisition.blur * size / 224, mode="nearest")
    # Motion between phase-encoding steps gives a faint copy of the head, shifted along that axis.
    if acquisition.ghost:
        image += acquisition.ghost * np.roll(image, int(acquisition.ghost_shift * size), axis=0)
    # The magnitude of two noisy channels is Rician; zero-filled k-space correlates neighboring pixels.
    noise = generator.standard_normal((2, size, size), dtype=np.float32) * np.float32(acquisition.noise)
    noise = 0.7 * noise + 0.4 * np.roll(noise, 1, axis=1) + 0.4 * np.roll(noise, 1, axis=2)
    image = np.hypot(image + noise[0], noise[1])
    image = acquisition.gain * np.maximum(image, 0) ** acquisition.gamma + acquisition.offset
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
