"""From the sample values of a file to 8 bits: one rule for all formats.

- Unsigned samples of at most 8 bits keep their values. Fewer bits are spread evenly over 0 to 255: 1-bit samples become
  0 and 255, a 4-bit sample v becomes 17 v.
- Signed 8-bit samples are shifted by 128, so that -128 becomes 0 and 127 becomes 255.
- All other samples (more than 8 bits, signed or floating point) are scaled linearly for each image: its minimum becomes
  0 and its maximum 255; an image of one value becomes 0. The number of bits that a file reserves says little about the
  range that it uses: 12-bit data in 16-bit files is common. All color channels share one minimum and maximum, so that
  a gray image stored as RGB reads like the same image stored as gray.
- Where the file stores white as the lowest value, intensities are inverted, so that bright pixels are high.
- Transparent pixels are composited on black after scaling. Pixels that are fully transparent do not count for the
  minimum and the maximum, since their values are arbitrary.
- Infinity and NaN have no place on this scale: such images are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from twinbud.data.formats.base import UnreadableImage

Box = tuple[int, int, int, int]
"""Left, top, right and bottom of a part of an image, in pixels."""
Samples = tuple[np.ndarray, np.ndarray | None]
"""Color (h, w, 1) or (h, w, 3) of any dtype, not premultiplied; and opacity (h, w, 1) in [0, 1], or None if opaque."""

_PART_PIXELS = 2**18


def boxes(width: int, height: int) -> Iterator[Box]:
    """Divide an image into boxes of at most 2^18 pixels, so that no intermediate result needs much memory."""
    step_x = min(width, _PART_PIXELS)
    step_y = _PART_PIXELS // step_x
    for top in range(0, height, step_y):
        for left in range(0, width, step_x):
            yield left, top, min(left + step_x, width), min(top + step_y, height)


def scale_to_8_bits(
    size: tuple[int, int],
    samples: Callable[[Box], Samples],
    *,
    limits: tuple[float, float] | None = None,
    white_is_zero: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Scale an image linearly to 8 bits, by the rule of this module.

    Args:
        size: Width and height in pixels.
        samples: Returns the samples of a box.
        limits: Values that become 0 and 255; None for the minimum and maximum of the image.
        white_is_zero: Whether low values are bright.
        out: (H, W, 3) uint8, to be filled box by box after ``samples`` has returned the box; None for a new array.

    Returns:
        (H, W, 3) uint8.

    Raises:
        UnreadableImage: A value is infinite or NaN.
    """
    width, height = size
    low, high = limits or _extremes(map(samples, boxes(width, height)))
    scale = 255 / (high - low) if high > low else 0.0
    rgb = np.empty((height, width, 3), np.uint8) if out is None else out
    for box in boxes(width, height):
        color, opacity = samples(box)
        values = color.astype(np.float64)
        values = (high - values if white_is_zero else values - low) * scale
        if opacity is not None:
            values = np.where(opacity > 0, values * opacity, 0)
        left, top, right, bottom = box
        rgb[top:bottom, left:right] = np.rint(values)
    return rgb


def _extremes(parts: Iterator[Samples]) -> tuple[float, float]:
    low, high = math.inf, -math.inf
    for color, opacity in parts:
        values = color if opacity is None else color[np.broadcast_to(opacity > 0, color.shape)]
        if values.size:
            # numpy's minimum and maximum, unlike Python's, keep NaN
            low, high = float(np.minimum(low, values.min())), float(np.maximum(high, values.max()))
    if (low, high) == (math.inf, -math.inf):  # every pixel is transparent
        return 0.0, 0.0
    if not math.isfinite(high - low):
        raise UnreadableImage("holds values that are not finite (NaN or infinity)")
    return low, high
