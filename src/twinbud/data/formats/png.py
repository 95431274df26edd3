"""PNG: the chunks that matter for pixels, and 16-bit color in full precision.

Chunks of metadata (text, color profile, resolution, time) are not passed to Pillow, which refuses files whose metadata
is damaged or large. Of the ancillary chunks only transparency, animation control and Exif (for the orientation) are
kept, the last two only with a correct checksum. Damaged critical chunks are still refused.
"""

from __future__ import annotations

import io
import struct
import zlib
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np
from PIL.PngImagePlugin import PngImageFile

from twinbud.data.formats.base import UnreadableImage
from twinbud.data.formats.intensity import Box, Samples, boxes, scale_to_8_bits

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KEPT_IF_INTACT = frozenset({b"acTL", b"fcTL", b"fdAT", b"eXIf"})
_MAX_CHUNKS = 2**20


def open_png(contents: bytes, *, check_data: bool = False) -> PngImageFile:
    """Open a PNG file without its metadata.

    Args:
        contents: Bytes of the file.
        check_data: Verify the checksums of the compressed pixels, which Pillow ignores.

    Raises:
        UnreadableImage: Such a checksum is wrong, or there are too many chunks.
    """
    image = PngImageFile(io.BufferedReader(_Pieces(_without_metadata(contents, check_data=check_data))))
    if contents[24:26] in (b"\2\0", b"\4\0") and "transparency" in image.info:
        image.info["transparency"] *= 255 // ((1 << contents[24]) - 1)  # Pillow scales the gray values alone
    return image


def is_16_bit_color(contents: bytes) -> bool:
    """Return whether a PNG has 16-bit samples of several channels, of which Pillow keeps the upper 8 bits only."""
    return contents[12:16] == b"IHDR" and contents[24:25] == b"\x10" and contents[25:26] in (b"\2", b"\4", b"\6")


def read_16_bit_color(contents: bytes) -> np.ndarray:
    """Decode 16-bit RGB, RGBA or gray with alpha.

    Pillow decodes such files twice: once to the upper bytes of all samples and once to the lower ones.

    Returns:
        (H, W, 3) uint8, scaled by the rule of ``formats.intensity``.
    """
    if contents[25] == 4:
        return _read_gray_with_alpha(contents)
    with open_png(contents) as image:
        image.load()
        key = image.info.get("transparency")
        # smaller than Pillow's own buffer; takes the result box by box
        high = np.empty((image.height, image.width, len(image.getbands())), np.uint8)
        for left, top, right, bottom in boxes(*image.size):
            high[top:bottom, left:right] = np.asarray(image.crop((left, top, right, bottom)))
    with open_png(contents) as image:
        mode = "RGB;16L" if high.shape[2] == 3 else "RGBA;16L"
        _set_raw_mode(image, mode)
        image.load()

        def samples(box: Box) -> Samples:
            left, top, right, bottom = box
            values = high[top:bottom, left:right].astype(np.uint16) << 8 | np.asarray(image.crop(box))
            if values.shape[2] == 4:
                return values[..., :3], values[..., 3:] / 65535
            return values, None if key is None else (values != np.array(key)).any(axis=2, keepdims=True)

        rgb = scale_to_8_bits(image.size, samples, out=high[..., :3])
    return np.ascontiguousarray(rgb)


def _read_gray_with_alpha(contents: bytes) -> np.ndarray:
    with open_png(contents) as image:
        _set_raw_mode(image, "RGBA")  # the four bytes of a pixel, as they are
        image.load()

        def samples(box: Box) -> Samples:
            values = np.asarray(image.crop(box)).view(">u2")
            return values[..., :1], values[..., 1:] / 65535

        return scale_to_8_bits(image.size, samples)


def gray_16_samples(image: PngImageFile) -> Callable[[Box], Samples]:
    """Return the samples of a 16-bit gray PNG; one gray value may be declared transparent."""
    key = image.info.get("transparency")

    def samples(box: Box) -> Samples:
        values = np.asarray(image.crop(box))[:, :, None]
        return values, None if key is None else values != key

    return samples


def _set_raw_mode(image: PngImageFile, mode: str) -> None:
    image.tile = [tile._replace(args=mode) for tile in image.tile]


def _without_metadata(contents: bytes, *, check_data: bool) -> list[memoryview]:
    """Return the parts that Pillow is to read; what does not parse as a chunk is kept, for Pillow to refuse."""
    view, pieces = memoryview(contents), []
    start = place = len(SIGNATURE)
    pieces.append(view[:start])
    for _ in range(_MAX_CHUNKS):
        if place + 12 > len(contents):
            break
        length, kind = struct.unpack_from(">I4s", contents, place)
        end = place + 12 + length
        if end > len(contents) or not kind.isalpha():
            break
        if check_data and kind == b"IDAT" and not _intact(view[place + 4 : end]):
            raise UnreadableImage("is damaged (wrong checksum of an IDAT chunk)")
        if kind[:1].islower() and kind != b"tRNS" and not (kind in _KEPT_IF_INTACT and _intact(view[place + 4 : end])):
            pieces.append(view[start:place])
            start = end
        place = end
        if kind == b"IEND":
            break
    else:
        raise UnreadableImage(f"holds more than {_MAX_CHUNKS} chunks")
    return [*pieces, view[start:]]


def _intact(chunk: memoryview) -> bool:
    return zlib.crc32(chunk[:-4]) == int.from_bytes(chunk[-4:], "big")


class _Pieces(io.RawIOBase):
    """Parts of a buffer as one file, without a copy."""

    def __init__(self, pieces: list[memoryview]) -> None:
        self._pieces = [piece for piece in pieces if piece]
        self._starts = [0, *accumulate(map(len, self._pieces))]
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._position = offset + (0, self._position, self._starts[-1])[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        index = bisect_right(self._starts, self._position) - 1
        if index >= len(self._pieces):
            return 0
        start = self._position - self._starts[index]
        part = self._pieces[index][start : start + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)
