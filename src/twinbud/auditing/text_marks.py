"""Find what looks like text burnt into the pixels of an image: where it is, never what it says.

Names and dates may be burnt in, and so may marks that only one class has. Text is told from anatomy by several
properties at once, because a false alarm costs more than a missed mark:

1. A stroke is thin and differs sharply from both sides: the image less its opening (white top-hat) keeps bright
   strokes, and that of the negative keeps dark ones.
2. A glyph is a small connected component of strokes, of one extreme gray value, with a quiet surrounding.
3. A line of text is a row of at least three glyphs on one base line, of similar height, value and distance.

The search runs on the image and on its copies of half and a quarter the size, so that glyphs of 5 to 80 pixels are
found. Its time and memory are linear in the number of pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import ndimage

MIN_GLYPHS = 3
"""Glyphs of a line: two small bright spots side by side are common in anatomy."""
_LEVELS = 3
_MIN_SIDE = 32
_MIN_SIDE_OF_COPY = 128
"""Smaller copies are not searched: what is as large as a glyph there is as large as an organ."""
_MAX_GAP = 0.8
"""Largest distance between the glyphs of a line, in heights of a glyph."""
_MIN_VALUE = 140
"""Least value of a glyph: bright strokes in the image, dark ones in its negative."""
_MAX_ASPECT, _STEM = 1.6, 3
"""Largest width of a glyph in heights, and the width in pixels up to which it may be a mere stem (I, l, 1)."""
_MIN_FILLED, _MAX_FILLED = 0.15, 0.9
"""Share of the box of a glyph that its strokes fill: less is a long curve, more a block."""
_MIN_HEIGHT, _MAX_HEIGHT = 5, 20
"""Height of a glyph in pixels of its level."""
_STROKE = 5
"""Strokes are thinner than this."""
_MIN_CONTRAST = 60
"""Least difference, in gray values, of a stroke from its surrounding."""
_MAX_SPREAD = 24
"""Largest difference between the values of the glyphs of a line."""
_MAX_UNREST = 14.0
"""Largest standard deviation, in gray values, of the surrounding of a glyph; the median of a line counts."""
_MARGIN, _MIN_AROUND = 3, 0.15
"""The surrounding: so many pixels on each side, of which this share at least is free of strokes."""
_MAX_GLYPHS = 4000
"""A level with more components is texture or noise, and has no text that could be told from it."""


class Box(NamedTuple):
    """A line of text-like marks: the first and the last row and column, in pixels of the image, counted from 0."""

    left: int
    top: int
    right: int
    bottom: int


class _Glyph(NamedTuple):
    left: int
    top: int
    right: int
    bottom: int
    value: float

    @property
    def height(self) -> int:
        return self.bottom - self.top + 1


def text_boxes(image: np.ndarray) -> tuple[Box, ...]:
    """Return the boxes of text-like marks, from top to bottom.

    Args:
        image: (H, W, 3) or (H, W) uint8.

    Returns:
        Boxes that do not overlap; none for an image of less than 32 pixels a side.
    """
    gray = image if image.ndim == 2 else image.max(2)
    found: list[Box] = []
    for level in range(_LEVELS):
        if min(gray.shape) < (_MIN_SIDE_OF_COPY if level else _MIN_SIDE):
            break
        for strokes in (gray, 255 - gray):
            for line in _lines(strokes):
                box = Box(*((edge << level) for edge in line[:2]), *(((edge + 1) << level) - 1 for edge in line[2:]))
                if not any(_overlap(box, other) for other in found):
                    found.append(box)
        gray = _halved(gray)
    return tuple(sorted(found, key=lambda box: (box.top, box.left)))


def _halved(gray: np.ndarray) -> np.ndarray:
    height, width = gray.shape[0] // 2 * 2, gray.shape[1] // 2 * 2
    even = gray[:height, :width].astype(np.uint16)
    return ((even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2] + 2) >> 2).astype(np.uint8)


def _lines(gray: np.ndarray) -> Iterator[tuple[int, int, int, int]]:
    """Yield (left, top, right, bottom) of each row of bright glyphs."""
    contrast = gray - ndimage.grey_opening(gray, size=(_STROKE, _STROKE))
    glyphs = _glyphs(gray, contrast)
    for line in _rows(glyphs):
        if np.median([_unrest(gray, contrast, glyph) for glyph in line]) <= _MAX_UNREST:
            yield (
                min(glyph.left for glyph in line),
                min(glyph.top for glyph in line),
                max(glyph.right for glyph in line),
                max(glyph.bottom for glyph in line),
            )


def _glyphs(gray: np.ndarray, contrast: np.ndarray) -> list[_Glyph]:
    labels = np.empty(gray.shape, np.int32)
    count = int(np.asarray(ndimage.label(contrast >= _MIN_CONTRAST, np.ones((3, 3), int), output=labels)))
    if not 0 < count <= _MAX_GLYPHS:
        return []
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if not (_MIN_HEIGHT <= height <= _MAX_HEIGHT and width <= _MAX_ASPECT * height):
            continue
        inside = labels[rows, columns] == number
        if inside.mean() < _MIN_FILLED or (width > _STEM and inside.mean() > _MAX_FILLED):
            continue
        values = gray[rows, columns][inside]
        value = float(np.percentile(values, 80))
        if value >= _MIN_VALUE:
            found.append(_Glyph(columns.start, rows.start, columns.stop - 1, rows.stop - 1, value))
    return found


def _rows(glyphs: list[_Glyph]) -> Iterator[list[_Glyph]]:
    """Yield rows of at least ``MIN_GLYPHS`` glyphs, each the next one to the right of the one before."""
    ordered = sorted(glyphs)
    used: set[int] = set()
    for start in range(len(ordered)):
        if start in used:
            continue
        line = [start]
        for other in range(start + 1, len(ordered)):
            first, last, new = ordered[line[0]], ordered[line[-1]], ordered[other]
            if new.left - last.right > _MAX_GAP * first.height:
                break
            if other not in used and _follows(first, last, new):
                line.append(other)
        if len(line) >= MIN_GLYPHS:
            used.update(line)
            yield [ordered[index] for index in line]


def _follows(first: _Glyph, last: _Glyph, new: _Glyph) -> bool:
    slack = max(1, round(0.15 * first.height))
    aligned = abs(new.bottom - first.bottom) <= slack and (
        abs(new.top - first.top) <= slack or 0.6 * first.height <= new.height <= 1.6 * first.height
    )
    return aligned and new.left > last.right and abs(new.value - first.value) <= _MAX_SPREAD


def _unrest(gray: np.ndarray, contrast: np.ndarray, glyph: _Glyph) -> float:
    """Return the standard deviation of what surrounds a glyph, strokes and their soft edges left out."""
    rows = slice(max(0, glyph.top - _MARGIN), glyph.bottom + _MARGIN + 1)
    columns = slice(max(0, glyph.left - _MARGIN), glyph.right + _MARGIN + 1)
    strokes = np.asarray(ndimage.binary_dilation(contrast[rows, columns] >= _MIN_CONTRAST // 3), dtype=bool)
    around = gray[rows, columns][~strokes]
    return float(around.std()) if around.size >= _MIN_AROUND * strokes.size else np.inf


def _overlap(one: Box, other: Box) -> bool:
    return one.left <= other.right and other.left <= one.right and one.top <= other.bottom and other.top <= one.bottom
