"""The normal head of the phantom: the anatomy of a patient, and the canvas on which a slice is painted.

Head coordinates: x points to the right of the image, y to the back of the head; one unit is half the length of the
head (about 9 cm); the origin is the center of the head. The level runs from 0 (orbits, sella, pons) to 1 (frontal
horns, basal ganglia). Intensities imitate a T1-weighted slice after contrast agent: fat near 1, air near 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

AIR, BONE, CSF, VITREOUS, GRAY, WHITE, MUSCLE, DURA, VESSEL, FAT = (
    0.02, 0.06, 0.13, 0.17, 0.36, 0.43, 0.34, 0.58, 0.85, 0.95
)  # fmt: skip
SELLA = (0.0, -0.17)
FIELD_EXTENT = 1.35
FIELD_CELLS = {"warp_x": 6, "warp_y": 6, "fold": 13, "depth": 17, "ridge": 30, "patch": 20, "grain": 70}
FIELD_SIDE = 176


@dataclass(frozen=True, kw_only=True, eq=False)
class Anatomy:
    """Parameters that all slices of a patient share; lengths in half head lengths."""

    level: float
    width: float
    outline: tuple[tuple[float, float], ...]
    scalp: float
    skull: float
    marrow: float
    atrophy: float
    num_sulci: int
    cortex: float
    gray_white_contrast: float
    ventricle: float
    ventricle_asymmetry: float
    midline_bow: float
    choroid: float
    gland: float
    sella_shift: tuple[float, float]
    vessels: float
    sinus: float
    spots: tuple[tuple[float, float, float, float], ...]
    orbit: float
    fields: dict[str, Array] = field(repr=False)


def draw_anatomy(generator: np.random.Generator) -> Anatomy:
    """Draw all parameters of one patient's normal head from one random stream."""
    uniform = generator.uniform
    return Anatomy(
        level=float(uniform(0, 1)),
        width=float(uniform(0.72, 0.88)),
        outline=tuple(
            (float(generator.normal(0, 0.016 / k)), float(uniform(0, 2 * np.pi))) for k in (1, 2, 3)
        ),
        scalp=float(uniform(0.035, 0.095)),
        skull=float(uniform(0.045, 0.085)),
        marrow=float(uniform(0.1, 0.6)),
        atrophy=float(uniform(0.1, 1)),
        num_sulci=int(generator.integers(26, 40)),
        cortex=float(uniform(0.035, 0.055)),
        gray_white_contrast=float(uniform(0.2, 1.6)),
        ventricle=float(uniform(0.6, 1.5)),
        ventricle_asymmetry=float(uniform(-0.35, 0.35)),
        midline_bow=float(generator.normal(0, 0.02)),
        choroid=float(uniform(0, 1)),
        gland=float(uniform(0.03, 0.058)),
        sella_shift=(float(generator.normal(0, 0.012)), float(generator.normal(0, 0.02))),
        vessels=float(uniform(0, 1)),
        sinus=float(uniform(0.4, 1.3)),
        spots=tuple(
            (float(uniform(0, 2 * np.pi)), float(uniform(0.25, 0.95)), float(uniform(0.02, 0.055)),
             float(generator.choice([-0.28, -0.12, 0.15, 0.35])))
            for _ in range(int(generator.integers(0, 5)))
        ),
        orbit=float(uniform(0.115, 0.14)),
        fields={
            name: generator.standard_normal((2, cells, cells), dtype=np.float32)
            for name, cells in FIELD_CELLS.items()
        },
    )  # fmt: skip


def smooth_noise(coarse: Array) -> Array:
    """Interpolate white noise on a coarse square grid with a cubic B-spline; the result has unit variance."""
    # Four neighbors along each axis; a matrix product would start BLAS threads inside the generator's own threads.
    cells = coarse.shape[0]
    position = np.linspace(1, cells - 2.001, FIELD_SIDE, dtype=np.float32)
    first = position.astype(np.intp) - 1
    t = position - np.floor(position)
    u = 1 - t
    weights = (u * u * u, 4 - 6 * t * t + 3 * t * t * t, 4 - 6 * u * u + 3 * u * u * u, t * t * t)
    rows = np.zeros((FIELD_SIDE, cells), dtype=np.float32)
    fine = np.zeros((FIELD_SIDE, FIELD_SIDE), dtype=np.float32)
    for k, weight in enumerate(weights):
        rows += weight[:, None] * coarse[first + k]
    for k, weight in enumerate(weights):
        fine += weight * rows[:, first + k]
    # 151/315, the integral of the squared B-spline, is the variance that remains along each axis.
    return fine * np.float32(315 / 151 / 36)


def smoothstep(low: float, high: float, value: float) -> float:
    """Return 0 below ``low``, 1 above ``high``, a cubic in between."""
    t = min(max((value - low) / (high - low), 0.0), 1.0)
    return t * t * (3 - 2 * t)


class Canvas:
    """A slice that is being painted: head coordinates, depth below the skin and intensity of each pixel."""

    def __init__(self, anatomy: Anatomy, x: Array, y: Array, level: float, pixel: float) -> None:
        self.anatomy, self.level, self.pixel = anatomy, level, pixel
        self.noise = sample_fields(anatomy, x, y, level)
        self.depth = skin_depth(anatomy, x, y)
        self.angle = np.arctan2(x, -y)
        # Everything inside the skull is drawn in warped coordinates; the skull itself is not warped.
        self.x = x + 0.03 * self.noise["warp_x"] + 0.01 * self.noise["fold"] - anatomy.midline_bow * np.cos(2.2 * y)
        self.y = y + 0.03 * self.noise["warp_y"] + 0.01 * self.noise["depth"]
        self.image: Array = np.full(x.shape, AIR, dtype=np.float32)
        self.brain: Array = np.zeros_like(self.image)

    def cover(self, distance: Array, softness: float = 1.5) -> Array:
        """Return a shape's coverage, in [0, 1], from its signed distance (negative inside); ``softness`` in pixels."""
        return np.clip(0.5 - distance / (softness * self.pixel), 0, 1)

    def paint(self, coverage: Array, value: float | Array) -> None:
        """Blend ``value`` into the image: replace it where ``coverage`` is 1, mix in proportion below 1."""
        self.image += coverage * (value - self.image)

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, value: float, *, turn: float = 0.0,
        softness: float = 1.5, strength: float = 1.0,
    ) -> None:  # fmt: skip
        """Paint a soft ellipse with center (x, y) and half-axes (rx, ry), rotated by ``turn`` radians."""
        reach = max(rx, ry) + softness * self.pixel
        rows, columns = self.window(x, y, reach)
        dx, dy = self.x[rows, columns] - x, self.y[rows, columns] - y
        c, s = np.cos(turn), np.sin(turn)
        radius = np.sqrt(((c * dx + s * dy) / rx) ** 2 + ((c * dy - s * dx) / ry) ** 2)
        coverage = strength * self.cover((radius - 1) * min(rx, ry), softness)
        self.image[rows, columns] += coverage * (value - self.image[rows, columns])

    def window(self, x: float, y: float, reach: float) -> tuple[slice, slice]:
        """Return the rows and columns of the bounding box of all pixels within ``reach`` of (x, y)."""
        near = (np.abs(self.x - x) < reach) & (np.abs(self.y - y) < reach)
        rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
        if not rows.size:
            return slice(0, 0), slice(0, 0)
        return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def sample_fields(anatomy: Anatomy, x: Array, y: Array, level: float) -> dict[str, Array]:
    """Sample the patient's noise fields at head coordinates; they change smoothly with the level."""
    up, down = np.float32(np.sin(level * np.pi / 2)), np.float32(np.cos(level * np.pi / 2))
    coarse = {name: down * low + up * high for name, (low, high) in anatomy.fields.items()}
    stack = np.stack([smooth_noise(grid) for grid in coarse.values()], axis=-1).reshape(-1, len(coarse))
    scale = (FIELD_SIDE - 1) / (2 * FIELD_EXTENT)
    column = np.clip((x + FIELD_EXTENT) * scale, 0, FIELD_SIDE - 1.001).ravel()
    row = np.clip((y + FIELD_EXTENT) * scale, 0, FIELD_SIDE - 1.001).ravel()
    left, top = np.floor(column), np.floor(row)
    right_share, low_share = (column - left)[:, None], (row - top)[:, None]
    index = top.astype(np.intp) * FIELD_SIDE + left.astype(np.intp)
    upper = stack[index]
    upper += right_share * (stack[index + 1] - upper)
    lower = stack[index + FIELD_SIDE]
    lower += right_share * (stack[index + FIELD_SIDE + 1] - lower)
    upper += low_share * (lower - upper)
    sampled = np.ascontiguousarray(upper.T).reshape(len(coarse), *x.shape)
    return dict(zip(coarse, sampled, strict=True))


def skin_depth(anatomy: Anatomy, x: Array, y: Array) -> Array:
    """Return the depth below the skin, in half head lengths; negative outside the head."""
    angle = np.arctan2(x, -y)
    radius = np.sqrt((x / anatomy.width) ** 2 + y**2)
    # The head is narrower at the forehead.
    swell = 1 - 0.05 * np.cos(angle) * np.sin(angle) ** 2 * 2
    for order, (amplitude, phase) in enumerate(anatomy.outline, start=2):
        swell += amplitude * np.cos(order * angle + phase)
    return ((swell - radius) * (0.5 + 0.5 * anatomy.width)).astype(np.float32)


def brain_depth_offset(anatomy: Anatomy) -> float:
    """Return the depth of the inner table of the skull below the skin."""
    return anatomy.scalp + anatomy.skull


def brain_front(x: Array | float, level: float) -> Array | float:
    """Return the y where the brain begins: at the sphenoid ridge in low slices, at the forehead in high ones."""
    return -0.31 - 0.95 * smoothstep(0.15, 0.5, level) + 0.12 * np.cos(np.pi * np.asarray(x) / 0.4)
