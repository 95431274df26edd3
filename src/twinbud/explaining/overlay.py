"""Draw a map over its image at the image's own resolution, and mark a map that did not pass the checks."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from twinbud.explaining.deletion import upsampled

_OPACITY = 0.6
"""Of the color where the map is highest; where it is 0, the image is unchanged."""
_ROWS = 512
"""Rows that are blended at a time, so that a large image needs little memory."""
_FAILED_COLOR = (70, 140, 220)
"""Of a map that did not pass: blue, which no tissue has. Gray would look like a finding."""
_WARNING_COLORS = ((252, 241, 230), (143, 61, 0))
"""Background and ink of the lines above a map that did not pass."""


def overlay(image_HWC: np.ndarray, map_hw: np.ndarray, *, is_colored: bool = True) -> np.ndarray:
    """Blend a map into an image.

    The network sees the whole image, squeezed to a square, so that the map stretched to the image's size lies in place.

    Args:
        image_HWC: (H, W, 3) uint8, at full resolution.
        map_hw: In [0, 1], of any size.
        is_colored: In all colors; pale blue for a map that did not pass.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = image_HWC.shape[:2]
    colors = _heat_colors() if is_colored else np.tile(np.array(_FAILED_COLOR, np.float32), (256, 1))
    map_HW = upsampled(torch.from_numpy(map_hw)[None], height, width)[0].numpy()
    result = np.empty_like(image_HWC)
    for start in range(0, height, _ROWS):
        values, image = map_HW[start : start + _ROWS], image_HWC[start : start + _ROWS].astype(np.float32)
        share = _OPACITY * values[..., None]
        blended = (1 - share) * image + share * colors[(values * 255).round().astype(np.uint8)]
        result[start : start + _ROWS] = blended.round().astype(np.uint8)
    return result


def _heat_colors() -> np.ndarray:
    """Return the color of each of 256 values, (256, 3) float32 in [0, 255]."""
    import matplotlib

    return np.asarray(matplotlib.colormaps["inferno"](np.arange(256))[:, :3] * 255, np.float32)


def with_warning(image_HWC: np.ndarray, text: str) -> np.ndarray:
    """Return an image with lines of text above it; one narrower than a word gets a margin."""
    height, width = image_HWC.shape[:2]
    size = max(11, width // 45)
    font: Any = ImageFont.load_default(size)
    pad = max(3, size // 4)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width - 2 * pad else [*lines, word]
    lines = [line for line in lines if line]
    whole = max(width, *(int(font.getlength(line)) + 2 * pad for line in lines))
    spacing = size + pad
    canvas = Image.new("RGB", (whole, height + spacing * len(lines) + pad), _WARNING_COLORS[0])
    canvas.paste(Image.fromarray(image_HWC), (0, spacing * len(lines) + pad))
    for number, line in enumerate(lines):
        ImageDraw.Draw(canvas).text((pad, pad // 2 + number * spacing), line, fill=_WARNING_COLORS[1], font=font)
    return np.asarray(canvas)


def draw(image_HWC: np.ndarray, map_hw: np.ndarray, warning: str | None) -> np.ndarray:
    """Return the picture of a map: in colors, or in pale blue below a warning.

    Args:
        image_HWC: (H, W, 3) uint8, at full resolution.
        map_hw: In [0, 1].
        warning: Why the map does not explain the prediction; None if it does.
    """
    picture = overlay(image_HWC, map_hw, is_colored=warning is None)
    return picture if warning is None else with_warning(picture, f"{warning[0].upper()}{warning[1:]}.")


def png(picture_HWC: np.ndarray, description: str) -> bytes:
    """Encode (H, W, 3) uint8 as PNG, with a description in its header."""
    info = PngInfo()
    info.add_itxt("Description", description)
    stream = io.BytesIO()
    Image.fromarray(picture_HWC).save(stream, format="PNG", pnginfo=info)
    return stream.getvalue()
