"""A volume of voxels: its slices as a radiologist expects them, and one intensity range for all of them.

Slices
    A volume lies in RAS+: its axes go to the patient's right, front and top. Slices are shown by the radiological
    convention, which is also that of DICOM's standard planes:

    ======== =================== =========== ============= ========================
    axis     top                 left        first slice   last slice
    ======== =================== =========== ============= ========================
    axial    front (anterior)    right       lowest        highest (superior)
    coronal  top (superior)      right       rearmost      foremost (anterior)
    sagittal top (superior)      front       leftmost      rightmost
    ======== =================== =========== ============= ========================

Intensities
    Without a window, 0 is the 0.5th and 255 the 99.5th percentile of the voxels that are finite and not zero, since
    zeros are usually background; where these percentiles are equal, as in a mask, the least and the greatest finite
    value. Zero means equal to zero as exactly as the stored integers can tell. Beyond the range, values are clipped.
    NaN is shown as black and infinity as its end of the range; neither counts for the range.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from twinbud.config.reading import Axis
from twinbud.data.formats.base import OTHER_WINDOW, UnreadableImage
from twinbud.data.formats.intensity import Box, Samples, scale_to_8_bits
from twinbud.data.formats.mapped import copied, release
from twinbud.data.formats.order_statistics import quantiles

LOW_SHARE, HIGH_SHARE = 0.005, 0.995
_PLACES: dict[Axis, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
_PART = 2**18
_RELEASED = 64
"""Parts of a mapped file that are read before their memory is given back: at most 128 MiB."""
_Number = TypeVar("_Number", int, float)
Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Volume:
    """The voxels of one volume, as they are stored.

    Attributes:
        voxels: (X, Y, Z) in RAS+, or (X, Y, Z, 3) uint8 for RGB; any real type and byte order; usually a view.
        flat: The same samples in one dimension, in any order.
        slope: The value of a sample is ``sample * slope + intercept``.
        intercept: See ``slope``.
        mapped: The file that the samples are views of, if it is too large to be in memory.
    """

    voxels: np.ndarray
    flat: np.ndarray
    slope: float = 1.0
    intercept: float = 0.0
    mapped: mmap.mmap | None = None

    @property
    def is_rgb(self) -> bool:
        """Whether a voxel is a color."""
        return self.voxels.ndim == 4

    def value(self, sample: Any) -> float:
        """Return the value of a sample."""
        with np.errstate(all="ignore"):
            return float(np.float64(sample) * self.slope + self.intercept)


def plane_size(shape: Sequence[_Number], axis: Axis) -> tuple[_Number, _Number, _Number]:
    """Return number, height and width of the slices of a volume of shape (X, Y, Z); or the same of its spacing."""
    place = _PLACES[axis]
    width, height = (size for index, size in enumerate(shape[:3]) if index != place)
    return shape[place], height, width


def plane(voxels: np.ndarray, axis: Axis, index: int) -> np.ndarray:
    """Return a view of one slice.

    Args:
        voxels: (X, Y, Z) or (X, Y, Z, 3), in RAS+.
        axis: The direction in which slices follow each other.
        index: Number of the slice, counted from 0.

    Returns:
        (H, W) or (H, W, 3), as the module describes it.
    """
    return np.moveaxis(voxels, _PLACES[axis], 0)[index].swapaxes(0, 1)[::-1, ::-1]


def robust_range(volume: Volume) -> Range:
    """Return the values that become 0 and 255 where no window is given.

    Raises:
        UnreadableImage: No voxel is finite, or all have one value.
    """
    native = volume.flat.dtype.newbyteorder("=")
    shares = ((LOW_SHARE, False), (HIGH_SHARE, True))
    found = quantiles(partial(_parts, volume, with_zero=False), native, shares)
    if found is not None:
        low, high = sorted(map(volume.value, found))
        if low < high:
            return _checked(low, high)
    return full_range(volume)


def full_range(volume: Volume) -> Range:
    """Return the least and the greatest finite value.

    Raises:
        UnreadableImage: No voxel is finite, or all have one value.
    """
    low, high = _extremes(volume)
    if low == high:
        raise UnreadableImage(f"holds the same value in all voxels ({low:g})")
    return _checked(low, high)


def window_range(volume: Volume, window: str, center: float, width: float) -> Range:
    """Return the ends of an intensity window.

    Args:
        volume: The volume.
        window: Name of the window, for the error.
        center: Its center, in values of the volume.
        width: Its width.

    Raises:
        UnreadableImage: No voxel is finite, or the window leaves the whole volume black or white.
    """
    least, greatest = _extremes(volume)
    low, high = center - width / 2, center + width / 2
    if greatest <= low or least >= high or least == greatest:
        color = "black" if greatest <= low else "white" if least >= high else "gray"
        raise UnreadableImage(
            f"is all {color} in the window {window} ({low:g} to {high:g}): its values are {least:g} to {greatest:g}",
            f"{OTHER_WINDOW}; those with a name are for CT in Hounsfield units",
        )
    return _checked(low, high)


def render(volume: Volume, axis: Axis, index: int, limits: Range | None) -> np.ndarray:
    """Return one slice as (H, W, 3) uint8, contiguous.

    Args:
        volume: The volume.
        axis: See ``plane``, and likewise ``index``.
        index: See there.
        limits: Values that become 0 and 255; None for RGB, which keeps its samples.
    """
    image = plane(volume.voxels, axis, index)
    if volume.mapped is not None:
        image = copied(image, volume.mapped)
    if limits is None:
        return np.ascontiguousarray(image)
    low, high = limits

    def samples(box: Box) -> Samples:
        left, top, right, bottom = box
        with np.errstate(all="ignore"):
            values = image[top:bottom, left:right].astype(np.float64) * volume.slope + volume.intercept
        return np.where(np.isnan(values), low, np.clip(values, low, high))[:, :, None], None

    return scale_to_8_bits((image.shape[1], image.shape[0]), samples, limits=limits)


def _parts(volume: Volume, *, with_zero: bool) -> Iterator[np.ndarray]:
    """Yield the finite samples, with or without those whose value is zero, in native byte order."""
    native = volume.flat.dtype.newbyteorder("=")
    zero = None if with_zero else _zero_sample(volume)
    for start in range(0, volume.flat.size, _PART):
        part = volume.flat[start : start + _PART].astype(native, copy=False)
        if volume.mapped is not None and start // _PART % _RELEASED == 0:
            release(volume.mapped)
        keep = np.isfinite(part) if native.kind == "f" else np.ones(part.shape, bool)
        if zero is not None:
            keep &= part != zero
        yield part if keep.all() else part[keep]


def _zero_sample(volume: Volume) -> Any:
    """Return the sample whose value is nearest to zero; None if the type has none that is as near as half a step."""
    dtype = volume.flat.dtype.newbyteorder("=")
    sample = -volume.intercept / volume.slope
    if dtype.kind == "f":
        return dtype.type(sample)
    if not math.isfinite(sample):
        return None
    limits, nearest = np.iinfo(dtype), round(sample)
    return dtype.type(nearest) if limits.min <= nearest <= limits.max else None


def _extremes(volume: Volume) -> Range:
    least, greatest = math.inf, -math.inf
    for part in _parts(volume, with_zero=True):
        if part.size:
            ends = volume.value(part.min()), volume.value(part.max())
            least, greatest = min(least, *ends), max(greatest, *ends)
    if least > greatest:
        raise UnreadableImage("holds no finite value (all voxels are NaN or infinite)")
    return least, greatest


def _checked(low: float, high: float) -> Range:
    """Return the range, after a check that floating-point numbers can divide by its width."""
    width = high - low
    if not (math.isfinite(width) and width > 0 and math.isfinite(255 / width)):
        raise UnreadableImage(f"holds values that cannot be scaled ({low:g} to {high:g})")
    return low, high
