"""TIFF: what the tags say about the samples, and which library decodes them.

The tags are read here, before any library sees the file, since both decoders give wrong pixels for some layouts instead
of an error. Pillow (libtiff) decodes unsigned 8-bit samples and all palettes, CMYK and YCbCr images; tifffile decodes
gray and RGB samples of other types and sizes. All other layouts are refused with a description of the file.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
import tifffile

from twinbud.data.formats.base import ImageInfo, UnreadableImage
from twinbud.data.formats.intensity import Box, Samples, scale_to_8_bits

SIGNATURES = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
MAX_SAMPLE_BYTES = 208 * 2**20
"""Largest size of the decoded samples: 36 megapixels of 16-bit RGB."""
MAX_PAGES_COUNTED = 1000
_MAX_SEGMENTS = 100_000
_MAX_VALUES = 2**20
_TYPES = {1: "B", 2: "s", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
"""Letters of ``struct`` for the field types of the tags that are read here."""
_TAGS = {
    256: "width", 257: "height", 258: "bits", 259: "compression", 262: "photometric", 270: "description",
    273: "strip_offsets", 274: "orientation", 277: "samples", 278: "rows_per_strip", 279: "strip_bytes", 284: "planar",
    322: "tile_width", 323: "tile_height", 324: "tile_offsets", 325: "tile_bytes", 338: "extra", 339: "format",
    530: "subsampling", 32997: "depth",
}  # fmt: skip
_PHOTOMETRIC = {
    0: "gray (white is zero)", 1: "gray", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "CIE L*a*b*",
    9: "ICC L*a*b*", 10: "ITU L*a*b*", 32803: "color filter array", 34892: "linear raw", 32844: "log L",
    32845: "log Luv",
}  # fmt: skip
_FORMATS = {1: "unsigned integer", 2: "signed integer", 3: "floating-point", 4: "undefined", 5: "complex", 6: "complex"}
_COMPRESSIONS = {
    1: "uncompressed", 2: "CCITT", 3: "CCITT G3", 4: "CCITT G4", 5: "LZW", 6: "old JPEG", 7: "JPEG", 8: "deflate",
    32773: "PackBits", 32946: "deflate", 34712: "JPEG 2000", 34887: "LERC", 34925: "LZMA", 50000: "Zstandard",
    50001: "WebP",
}  # fmt: skip
_CONVERT = "Save it as gray or RGB PNG or TIFF of 8 or 16 bits"


@dataclass(frozen=True)
class TiffPage:
    """The first page of a TIFF file, as its tags describe it."""

    tags: dict[str, tuple[int, ...]]
    description: str
    num_pages: int

    def value(self, name: str, default: int) -> int:
        """Return the first value of a tag."""
        return self.tags.get(name, (default,))[0]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as stored."""
        return self.value("width", 0), self.value("height", 0)

    @property
    def samples(self) -> int:
        """Number of samples per pixel, extra ones included."""
        return self.value("samples", 1)

    @property
    def bits(self) -> int:
        """Bits per sample."""
        return self.value("bits", 1)

    @property
    def format(self) -> int:
        """Sample format: 1 unsigned, 2 signed, 3 floating point."""
        return self.value("format", 1)

    @property
    def photometric(self) -> int:
        """Photometric interpretation; -1 if the tag is missing."""
        return self.value("photometric", -1)

    @property
    def compression(self) -> int:
        """Compression scheme."""
        return self.value("compression", 1)

    @cached_property
    def segment_shape(self) -> tuple[int, int]:
        """Width and height of a strip or tile."""
        width, height = self.size
        if "tile_width" in self.tags:
            return self.value("tile_width", 0), self.value("tile_height", 0)
        return width, min(self.value("rows_per_strip", height), height)

    def __str__(self) -> str:
        kind = _PHOTOMETRIC.get(self.photometric, f"photometric {self.photometric}")
        bits = "/".join(map(str, sorted({*self.tags.get("bits", (1,))})))
        words = [f"{bits}-bit", _FORMATS.get(self.format, f"format {self.format}"), kind]
        words += [f"of {self.samples} samples a pixel"] if self.samples > 1 else []
        words += [_COMPRESSIONS.get(self.compression, f"compression {self.compression}")]
        return " ".join(words)


def read_page(contents: bytes) -> TiffPage:
    """Read the tags of the first page and count the pages.

    Raises:
        UnreadableImage: The tags are damaged, or the layout is not supported.
    """
    try:
        page = _parse(contents)
    except (struct.error, KeyError, IndexError) as error:
        raise UnreadableImage(f"is damaged or truncated (TIFF tags: {error})") from error
    if min(page.size) < 1 or any(not values for values in page.tags.values()):
        raise UnreadableImage("is damaged (TIFF tags: no width or height)")
    _check_layout(page)
    return page


def describe(page: TiffPage) -> ImageInfo:
    """Return the size and the number of frames, those that only an ImageJ description mentions included."""
    num_frames, frames = page.num_pages, None
    if page.num_pages == MAX_PAGES_COUNTED:
        frames = f"{num_frames} or more pages"
    elif page.description.startswith("ImageJ="):
        axes = dict(re.findall(r"^(images|channels|slices|frames)=(\d{1,9})\s*$", page.description, re.MULTILINE))
        num_frames = max(num_frames, int(axes.pop("images", 1)))
        counts = ", ".join(f"{count} {axis}" for axis, count in axes.items())
        frames = f"an ImageJ stack of {num_frames} images" + (f" ({counts})" if counts else "")
    if (depth := page.value("depth", 1)) > 1:
        num_frames, frames = num_frames * depth, f"a volume of {depth} slices"
    return ImageInfo(width=page.size[0], height=page.size[1], num_frames=num_frames, frames=frames)


def _parse(contents: bytes) -> TiffPage:
    order = "<" if contents[:2] == b"II" else ">"
    is_big = contents[2:4] in (b"+\x00", b"\x00+")
    (offset,) = struct.unpack_from(order + ("Q" if is_big else "I"), contents, 8 if is_big else 4)
    first, num_pages = offset, 0
    while offset and num_pages < MAX_PAGES_COUNTED:
        num_pages += 1
        (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), contents, offset)
        end = offset + (8 + 20 * count if is_big else 2 + 12 * count)
        try:
            (offset,) = struct.unpack_from(order + ("Q" if is_big else "I"), contents, end)
        except struct.error:
            if num_pages > 1:
                raise
            offset = 0  # a file may end with its first directory
    tags: dict[str, tuple[int, ...]] = {}
    description = ""
    for name, values in _entries(contents, first, order, is_big=is_big):
        if name == "description":
            description = bytes(values[0]).decode("latin-1")
        elif not isinstance(values[0], bytes):
            tags[name] = values
    return TiffPage(tags, description, num_pages)


def _entries(contents: bytes, offset: int, order: str, *, is_big: bool) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield the names and values of the tags of one directory that are listed in ``_TAGS``."""
    (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), contents, offset)
    layout = order + ("HHQ" if is_big else "HHI")
    width, room = (20, 8) if is_big else (12, 4)
    first = offset + (8 if is_big else 2)
    for place in range(first, min(first + width * count, len(contents) - width + 1), width):
        tag, kind, num_values = struct.unpack_from(layout, contents, place)
        if tag not in _TAGS or num_values == 0:
            continue
        if num_values > _MAX_VALUES:
            raise UnreadableImage(f"is damaged (TIFF tag {tag} has {num_values} values)")
        letter = _TYPES[kind]
        code = f"{order}{num_values}{letter}"
        start = place + width - room
        if struct.calcsize(code) > room:
            (start,) = struct.unpack_from(order + ("Q" if is_big else "I"), contents, start)
        yield _TAGS[tag], struct.unpack_from(code, contents, start)


def _check_layout(page: TiffPage) -> None:
    """Refuse what no decoder reads rightly."""
    tags = page.tags
    if page.photometric == -1:
        problem = "has no PhotometricInterpretation tag, so that black and white cannot be told apart"
        raise UnreadableImage(problem, "Save it again with this tag")
    mixed = any(len({*tags.get(name, (1,))}) > 1 for name in ("bits", "format"))
    if mixed or page.photometric not in (0, 1, 2, 3, 5, 6) or page.format not in (1, 2, 3):
        raise unsupported(page)
    if page.photometric == 6 and page.compression == 1 and tags.get("subsampling", (2, 2)) != (1, 1):
        raise UnreadableImage("holds uncompressed YCbCr samples with subsampled color (TIFF)", _CONVERT)
    if decoded_by_pillow(page):
        return
    colors = 3 if page.photometric == 2 else 1
    extra = tags.get("extra", ())
    sizes = {1: (*range(1, 17), 24, 32, 64), 2: (8, 16, 32, 64), 3: (16, 24, 32, 64)}[page.format]
    known_extra = (
        page.samples == colors
        or (colors == 3 and extra in ((), (0,)) and page.samples == 4)
        or (page.samples == colors + 1 and extra in ((1,), (2,)))
    )
    if (
        page.photometric not in (0, 1, 2)
        or page.bits not in sizes
        or page.compression not in (1, 5, 8, 32773, 32946)
        or not known_extra
    ):
        raise unsupported(page)


def unsupported(page: TiffPage) -> UnreadableImage:
    """Return the error for a layout that neither decoder reads rightly."""
    return UnreadableImage(f"has an unsupported sample layout: {page} (TIFF)", _CONVERT)


def decoded_by_pillow(page: TiffPage) -> bool:
    """Return whether Pillow gives the right pixels."""
    if page.format != 1:
        return False
    if page.photometric in (0, 1):
        with_alpha = page.samples == 2 and page.tags.get("extra") == (2,)  # Pillow cannot convert premultiplied gray
        one = page.samples == 1 and page.bits in (1, 2, 4, 8)
        return one or (with_alpha and page.bits == 8 and page.photometric == 1)
    return page.bits == 8 or (page.photometric, page.bits) in ((3, 1), (3, 2), (3, 4), (5, 16))


def read_with_tifffile(contents: bytes, page: TiffPage) -> np.ndarray:
    """Decode gray or RGB samples of any type.

    Returns:
        (H, W, 3) uint8, scaled by the rule of ``formats.intensity``, not yet turned upright.

    Raises:
        UnreadableImage: The tags contradict each other, or strips or tiles are missing, truncated or too large.
    """
    _check_segments(contents, page)
    with tifffile.TiffFile(BytesIO(contents)) as file:
        planes = file.pages.first.asarray(squeeze=False, maxworkers=1)  # (planes, depth, H, W, samples of a plane)
    width, height = page.size
    values = planes[0, 0] if len(planes) == 1 else planes[:, 0, :, :, 0].transpose(1, 2, 0)
    if values.shape != (height, width, page.samples):
        raise UnreadableImage("is damaged (TIFF tags contradict each other)")
    return scale_to_8_bits(
        page.size,
        lambda box: _samples(values, page, box),
        limits=_limits(page),
        white_is_zero=page.photometric == 0,
    )


def _limits(page: TiffPage) -> tuple[float, float] | None:
    if page.format == 1 and page.bits <= 8:
        return 0, 2**page.bits - 1
    return (-128, 127) if (page.format, page.bits) == (2, 8) else None


def _samples(values: np.ndarray, page: TiffPage, box: Box) -> Samples:
    left, top, right, bottom = box
    part = values[top:bottom, left:right]
    colors = 3 if page.photometric == 2 else 1
    extra = page.tags.get("extra", (2,))[0]
    if page.samples == colors or extra == 0:
        return part[..., :colors], None
    full = 1.0 if page.format == 3 else float(2 ** (page.bits - (page.format == 2)) - 1)
    opacity = np.clip(part[..., colors:].astype(np.float64) / full, 0, 1)
    color = part[..., :colors]
    if extra == 1:  # premultiplied
        color = np.divide(color, opacity, out=np.zeros(color.shape), where=opacity > 0)
    return color, opacity


def _check_segments(contents: bytes, page: TiffPage) -> None:
    """Refuse missing, truncated and oversized strips and tiles, which tifffile fills with zeros or decodes in full."""
    tiled = "tile_width" in page.tags
    offsets = page.tags.get("tile_offsets" if tiled else "strip_offsets", ())
    num_bytes = page.tags.get("tile_bytes" if tiled else "strip_bytes", ())
    (width, height), (across, down) = page.size, page.segment_shape
    if min(across, down) < 1:
        raise UnreadableImage("is damaged (TIFF tags: empty strips or tiles)")
    num_planes = page.samples if page.value("planar", 1) == 2 else 1
    expected = math.ceil(width / across) * math.ceil(height / down) * num_planes
    sample_bytes = page.samples * max(1, math.ceil(page.bits / 8))
    if max(width * height, across * down) * sample_bytes > MAX_SAMPLE_BYTES:
        problem = f"holds more than {MAX_SAMPLE_BYTES >> 20} MiB of samples: {width}×{height} {page}"
        raise UnreadableImage(problem, _CONVERT)
    if expected > _MAX_SEGMENTS:
        raise UnreadableImage(f"has {expected} strips or tiles (the limit is {_MAX_SEGMENTS})", _CONVERT)
    if len(offsets) < expected or len(num_bytes) < expected or not all(offsets) or not all(num_bytes):
        raise UnreadableImage("is damaged (TIFF strips or tiles are missing)")
    if any(start + size > len(contents) for start, size in zip(offsets, num_bytes, strict=False)):
        raise UnreadableImage("is truncated (TIFF strips or tiles lie beyond its end)")
