"""From the stored values of a DICOM frame to 8 bits.

In the order of the standard (PS3.3 C.7.6.3 and C.11, PS3.4 N.2): stored values, modality LUT or rescale, VOI LUT or
window, and only then the inversion of MONOCHROME1. All arithmetic is in float64; values are rounded once, at the end.

- A window of the file is the first of several, with its function: LINEAR, LINEAR_EXACT or SIGMOID. A VOI LUT counts
  more. A window that cannot be (no width) counts as none.
- Without a window: values of at most 8 bits keep their place in 0 to 255; of others, the smallest value of the frame
  becomes 0 and the largest 255 (``formats.intensity`` has the same rule). ``auto`` scales all by their extremes.
- Pixel padding is no tissue: it does not count among the extremes, and is black.
- Colors have no window. Of more than 8 bits, they are scaled by their common extremes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from twinbud.config.reading import AUTO_WINDOW, window_limits
from twinbud.data.formats.base import NO_UNITS, OTHER_WINDOW, UnreadableImage
from twinbud.data.formats.dicom_elements import DicomElements
from twinbud.data.formats.dicom_pixels import StoredFrame
from twinbud.data.formats.intensity import boxes, scale_to_8_bits

Curve = Callable[[np.ndarray], np.ndarray]
"""A function of float64 values, element by element."""

_MAX_TABLE_BITS = 16
"""Values of so many bits are mapped by a table of all of them."""
# of ITU-R BT.601, as JPEG and DICOM have them
_RED_CR, _GREEN_CB, _GREEN_CR, _BLUE_CB = 1.402, -0.114 * 1.772 / 0.587, -0.299 * 1.402 / 0.587, 1.772


def to_rgb(frame: StoredFrame, groups: Sequence[DicomElements], window: str | None) -> np.ndarray:
    """Convert a frame to 8 bits.

    Args:
        frame: The stored values.
        groups: Elements that may hold rescale and window, the most specific ones first.
        window: As ``config.reading`` spells it; None for the window of the file.

    Returns:
        (H, W, 3) uint8 RGB, contiguous.

    Raises:
        UnreadableImage: A window in physical units is requested for colors, or leaves an image of several values
            constant; or a table of the file is damaged.
    """
    is_gray = frame.photometric.startswith("MONOCHROME")
    if window not in (None, AUTO_WINDOW) and not is_gray:
        problem = f"holds colors, not values in physical units, to which the window {window} could apply"
        raise UnreadableImage(problem, NO_UNITS)
    if frame.photometric == "PALETTE COLOR":
        return _with_palette(frame, groups[-1])
    if not is_gray:
        return _colors(frame)
    elements = groups[-1]
    to_modality = _modality_curve(groups, signed=frame.signed)
    is_padding = _padding(elements, signed=frame.signed)
    if frame.bits > _MAX_TABLE_BITS:
        present = _extremes(frame.values, is_padding)
    else:
        present = _present(frame)
        present = present[~is_padding(present)]
    display = _display_curve(groups, to_modality, present, frame, window)

    def shown(stored: np.ndarray) -> np.ndarray:
        gray = np.clip(np.rint(display(to_modality(stored.astype(np.float64)))), 0, 255).astype(np.uint8)
        gray = 255 - gray if frame.photometric == "MONOCHROME1" else gray
        return np.where(is_padding(stored), np.uint8(0), gray)

    if window is not None and len(present) > 1 and len(np.unique(shown(present))) == 1:
        low, high = np.sort(to_modality(present.astype(np.float64)))[[0, -1]]
        problem = f"becomes constant in the window {window}: its values are {low:g} to {high:g}"
        raise UnreadableImage(problem, OTHER_WINDOW)
    return _mapped(frame, shown)


@dataclass(frozen=True, kw_only=True, eq=False)
class LookupTable:
    """A table of a file.

    Attributes:
        entries: Its values.
        first: The input of the first entry.
        bits: Bits of an entry.
    """

    entries: np.ndarray
    first: int
    bits: int

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Look values up; those outside get the first or the last entry."""
        places = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1).astype(np.intp)
        return self.entries[places]


def _present(frame: StoredFrame) -> np.ndarray:
    """Return the stored values that occur, ascending."""
    every = _every_value(frame)
    counts = np.zeros(len(every), bool)
    for left, top, right, bottom in boxes(frame.values.shape[1], frame.values.shape[0]):
        counts[_places(frame, frame.values[top:bottom, left:right])] = True
    return np.sort(every[counts])


def _extremes(values: np.ndarray, is_padding: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return the smallest and the largest value that is no padding."""
    ends: list[int] = []
    for left, top, right, bottom in boxes(values.shape[1], values.shape[0]):
        part = values[top:bottom, left:right]
        part = part[~is_padding(part)]
        ends += [int(part.min()), int(part.max())] if part.size else []
    return np.unique(np.array([min(ends), max(ends)] if ends else [], values.dtype))


def _every_value(frame: StoredFrame) -> np.ndarray:
    """Return all values that the bits can have, int32, in the order of ``_places``."""
    every = np.arange(1 << frame.bits, dtype=np.int32)
    return np.where(every >> (frame.bits - 1), every - (1 << frame.bits), every) if frame.signed else every


def _places(frame: StoredFrame, values: np.ndarray) -> np.ndarray:
    """Return where values are in a table of all of them."""
    return values.astype(np.intp) & ((1 << frame.bits) - 1)


def _mapped(frame: StoredFrame, shown: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    height, width = frame.values.shape
    rgb = np.empty((height, width, 3), np.uint8)
    table = shown(_every_value(frame)) if frame.bits <= _MAX_TABLE_BITS else None
    for left, top, right, bottom in boxes(width, height):
        part = frame.values[top:bottom, left:right]
        gray = shown(part) if table is None else table[_places(frame, part)]
        rgb[top:bottom, left:right] = gray[:, :, None]
    return rgb


def _padding(elements: DicomElements, *, signed: bool) -> Callable[[np.ndarray], np.ndarray]:
    """Return which stored values are padding."""
    ends = [*elements.integers("PixelPaddingValue", signed=signed)[:1]]
    if not ends:
        return lambda values: np.zeros(values.shape, bool)
    ends += elements.integers("PixelPaddingRangeLimit", signed=signed)[:1]
    low, high = min(ends), max(ends)
    return lambda values: (values >= low) & (values <= high)


def _modality_curve(groups: Sequence[DicomElements], *, signed: bool) -> Curve:
    """Return the function from stored values to the values that windows apply to."""
    for group in groups:
        for item in group.items("ModalityLUTSequence")[:1]:
            return _lookup_table(item, "LUTDescriptor", "LUTData", signed=signed)
        slopes, intercepts = group.decimals("RescaleSlope"), group.decimals("RescaleIntercept")
        if slopes or intercepts:
            slope, intercept = [*slopes, 1.0][0] or 1.0, [*intercepts, 0.0][0]
            return lambda values: values * slope + intercept
    return lambda values: values


def _display_curve(
    groups: Sequence[DicomElements], to_modality: Curve, present: np.ndarray, frame: StoredFrame, window: str | None
) -> Curve:
    """Return the function from values after the modality LUT to 0 to 255."""
    limits = np.array([0, (1 << frame.bits) - 1]) - ((1 << (frame.bits - 1)) if frame.signed else 0)
    may_be_negative = bool((to_modality(limits.astype(float)) < 0).any())  # unsigned values, too, after a rescale
    if window is None and (of_file := _window_of_file(groups, signed=may_be_negative)) is not None:
        return of_file
    if window not in (None, AUTO_WINDOW):
        return linear(*window_limits(window))
    ends = present[[0, -1]] if len(present) else np.zeros(2)
    if window is None and frame.bits <= 8:
        ends = limits
    values = to_modality((present if isinstance(to_modality, LookupTable) and len(present) else ends).astype(float))
    low, high = float(values.min()), float(values.max())
    scale = 255 / (high - low) if high > low else 0.0
    return lambda modality: (modality - low) * scale


def _window_of_file(groups: Sequence[DicomElements], *, signed: bool) -> Curve | None:
    """Return the VOI LUT or the first window of a file; None if it has neither.

    Args:
        groups: Elements that may hold them, the most specific ones first.
        signed: Whether the values that they apply to can be negative.
    """
    for group in groups:
        for item in group.items("VOILUTSequence")[:1]:
            table = _lookup_table(item, "LUTDescriptor", "LUTData", signed=signed)
            return lambda values, table=table: table(values) * (255 / ((1 << table.bits) - 1))
        function = group.text("VOILUTFunction") or "LINEAR"
        windows = zip(group.decimals("WindowCenter"), group.decimals("WindowWidth"), strict=False)
        for center, width in windows:
            if width >= 1 or (width > 0 and function != "LINEAR"):
                return {"LINEAR_EXACT": linear_exact, "SIGMOID": sigmoid}.get(function, linear)(center, width)
    return None


def linear(center: float, width: float) -> Curve:
    """Return the standard's LINEAR function (PS3.3 C.11.2.1.2.1) with an output of 0 to 255.

    >>> linear(40, 400)(np.array([-160.0, 39.5, 239.0]))
    array([  0. , 127.5, 255. ])
    """
    if width <= 1:
        return lambda values: np.where(values > center - 0.5, 255.0, 0.0)
    return lambda values: np.clip(((values - (center - 0.5)) / (width - 1) + 0.5) * 255, 0, 255)


def linear_exact(center: float, width: float) -> Curve:
    """Return the standard's LINEAR_EXACT function (PS3.3 C.11.2.1.3.2) with an output of 0 to 255."""
    return lambda values: np.clip(((values - center) / width + 0.5) * 255, 0, 255)


def sigmoid(center: float, width: float) -> Curve:
    """Return the standard's SIGMOID function (PS3.3 C.11.2.1.3.1) with an output of 0 to 255."""
    return lambda values: 255 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))


def _lookup_table(elements: DicomElements, descriptor: str, data: str, *, signed: bool) -> LookupTable:
    """Read a table.

    Raises:
        UnreadableImage: It is incomplete.
    """
    numbers = elements.integers(descriptor)
    if len(numbers) != 3 or not 1 <= numbers[2] <= 16:
        raise UnreadableImage("has a lookup table without a usable descriptor")
    count, first, bits = numbers[0] or 1 << 16, numbers[1], numbers[2]
    contents = elements.value(data)
    if len(contents) < count:
        raise UnreadableImage(f"has a lookup table of {count} entries, and {len(contents)} of them")
    words = np.frombuffer(contents + b"\0" * (len(contents) % 2), "<u2" if elements.little_endian else ">u2")
    # entries of 8 bits come in pairs, the first one in the lower half of a word
    entries = (words if len(contents) >= 2 * count else words.astype("<u2").view(np.uint8))[:count]
    if signed and first >= 1 << 15:
        first -= 1 << 16
    return LookupTable(entries=entries.astype(np.float64), first=first, bits=bits)


def _with_palette(frame: StoredFrame, elements: DicomElements) -> np.ndarray:
    """Look the colors of a palette up; those of 16 bits keep their upper 8."""
    if "SegmentedRedPaletteColorLookupTableData" in elements:
        raise UnreadableImage("has a segmented palette, which is not supported")
    rgb = np.empty((*frame.values.shape, 3), np.uint8)
    for channel, color in enumerate(("Red", "Green", "Blue")):
        name = f"{color}PaletteColorLookupTable"
        table = _lookup_table(elements, f"{name}Descriptor", f"{name}Data", signed=frame.signed)
        is_wide = table.bits > 8 and table.entries.max() > 255  # some files write 16 bits and mean 8
        entries = np.clip(table.entries // 256 if is_wide else table.entries, 0, 255).astype(np.uint8)
        for left, top, right, bottom in boxes(frame.values.shape[1], frame.values.shape[0]):
            part = frame.values[top:bottom, left:right].astype(np.int64) - table.first
            rgb[top:bottom, left:right, channel] = entries[np.clip(part, 0, len(entries) - 1)]
    return rgb


def _colors(frame: StoredFrame) -> np.ndarray:
    height, width, _ = frame.values.shape
    if frame.photometric == "RGB":
        if frame.bits == 8 and not frame.signed:
            return np.ascontiguousarray(frame.values.astype(np.uint8, copy=False))
        limits = (0, (1 << frame.bits) - 1) if frame.bits <= 8 and not frame.signed else None

        def samples(box: tuple[int, int, int, int]) -> tuple[np.ndarray, None]:
            left, top, right, bottom = box
            return frame.values[top:bottom, left:right], None

        return scale_to_8_bits((width, height), samples, limits=limits)
    if frame.bits != 8 or frame.signed:
        raise UnreadableImage(f"has YBR colors of {frame.bits} bits, which is not supported")
    rgb = np.empty((height, width, 3), np.uint8)
    for left, top, right, bottom in boxes(width, height):
        luma, blue, red = np.moveaxis(frame.values[top:bottom, left:right].astype(np.float64), 2, 0)
        blue, red = blue - 128, red - 128
        colors = luma + _RED_CR * red, luma + _GREEN_CB * blue + _GREEN_CR * red, luma + _BLUE_CB * blue
        rgb[top:bottom, left:right] = np.clip(np.rint(np.stack(colors, axis=2)), 0, 255)
    return rgb
