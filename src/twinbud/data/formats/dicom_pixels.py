"""From the pixel data of a DICOM file to the stored values of one frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from twinbud.data.formats.base import UnreadableImage
from twinbud.data.formats.dicom_codecs import decompress, require_supported
from twinbud.data.formats.dicom_header import DicomHeader, PixelPlace
from twinbud.data.formats.dicom_layout import PixelLayout

_MAX_GROWTH, _MAX_EXTRA_BYTES = 1.5, 2**20
"""A compressed frame may be larger than the pixels that it holds, but not by much."""
_MAX_FRAGMENTS = 200_000
"""Each takes two reads; only a file that is made to be slow has so many."""
_MIN_ITEM_BYTES = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredFrame:
    """The stored values of one frame.

    Attributes:
        values: (H, W) or (H, W, 3) integers.
        bits: Number of bits that a value can have.
        signed: Whether the values are signed.
        photometric: MONOCHROME1, MONOCHROME2, PALETTE COLOR, RGB or YBR_FULL.
    """

    values: np.ndarray
    bits: int
    signed: bool
    photometric: str


def check_extent(header: DicomHeader, layout: PixelLayout, place: PixelPlace, num_frames: int) -> None:
    """Refuse a file whose pixels no frame could be read from, without reading any.

    Raises:
        UnreadableImage: It announces more pixels than it has bytes for, or stores them in an unsupported way.
    """
    if header.is_compressed:
        require_supported(header.transfer_syntax)
    if header.is_compressed != (place.length is None):
        kinds = ("compressed", "in one piece") if header.is_compressed else ("uncompressed", "in fragments")
        raise UnreadableImage(f"has pixels that are {kinds[0]} by its transfer syntax and stored {kinds[1]}")
    needed = _MIN_ITEM_BYTES * num_frames if header.is_compressed else (num_frames * layout.frame_bits + 7) // 8
    if place.available < needed:
        frames = "" if num_frames == 1 else f"{num_frames} frames of "
        size = f"{frames}{layout.columns}×{layout.rows} pixels"
        raise UnreadableImage(f"is truncated: it announces {size} and has {place.available} bytes of them")


def read_frame(
    header: DicomHeader, layout: PixelLayout, place: PixelPlace, *, frame: int, num_frames: int
) -> StoredFrame:
    """Read the stored values of one frame.

    Raises:
        UnreadableImage: The frame is damaged or truncated, or its compression is not supported.
    """
    if header.is_compressed:
        data = _compressed(layout, place, frame, num_frames)
        values, bits, photometric = decompress(header.transfer_syntax, layout, data)
        bits = _bits_that_count(values, bits, layout)
    else:
        bits, photometric = layout.bits_stored, "YBR_FULL" if layout.samples == 3 else layout.photometric
        if layout.photometric == "RGB":
            photometric = "RGB"
        values = _uncompressed(header, layout, place, frame) >> (layout.high_bit + 1 - bits)
    return StoredFrame(
        values=_lowest_bits(values, bits, layout.signed), bits=bits, signed=layout.signed, photometric=photometric
    )


def _uncompressed(header: DicomHeader, layout: PixelLayout, place: PixelPlace, frame: int) -> np.ndarray:
    """Return (H, W) or (H, W, 3) unsigned integers of ``bits_allocated`` bits."""
    shape = (layout.rows, layout.columns) if layout.samples == 1 else (layout.rows, layout.columns, 3)
    first_bit = frame * layout.frame_bits
    first, last = first_bit // 8, (first_bit + layout.frame_bits + 7) // 8
    is_swapped = not header.elements.little_endian and layout.bits_allocated <= 8 and place.vr == "OW"
    if is_swapped:  # bytes are stored as the halves of 16-bit words
        first, last = first & ~1, (last + 1) & ~1
    place.body.seek(place.start + first)
    data = np.frombuffer(place.body.read(last - first), np.uint8)
    if is_swapped:
        data = data[: len(data) & ~1].reshape(-1, 2)[:, ::-1].ravel()[first_bit // 8 - first :]
    if layout.bits_allocated == 1:
        bits = np.unpackbits(data, bitorder="little")[first_bit % 8 :]
        return bits[: layout.rows * layout.columns].reshape(shape)
    kind = f"{'<' if header.elements.little_endian else '>'}u{layout.bits_allocated // 8}"
    values = data[: layout.frame_bits // 8].view(kind)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if layout.photometric == "YBR_FULL_422":
        return _without_subsampling(values, shape)
    if layout.planar:
        return values.reshape(3, *shape[:2]).transpose(1, 2, 0)
    return values.reshape(shape)


def _without_subsampling(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Repeat the colors that two neighbouring pixels share: Y1 Y2 Cb Cr becomes Y1 Cb Cr, Y2 Cb Cr."""
    if shape[1] % 2:
        raise UnreadableImage(f"has {shape[1]} columns, and pixels that share their color in pairs")
    pairs = values.reshape(-1, 4)
    pixels = np.empty((len(pairs), 2, 3), values.dtype)
    pixels[:, :, 0] = pairs[:, :2]
    pixels[:, :, 1:] = pairs[:, None, 2:]
    return pixels.reshape(shape)


def _compressed(layout: PixelLayout, place: PixelPlace, frame: int, num_frames: int) -> bytes:
    """Return the bytes of a compressed frame."""
    from pydicom.encaps import get_frame

    place.body.seek(place.start)
    limit = int(_MAX_GROWTH * layout.frame_bits / 8) + _MAX_EXTRA_BYTES
    body: Any = _Bounded(place.body, limit)
    return get_frame(body, frame, number_of_frames=num_frames)


class _Bounded:
    """A file that is read no more often, and no further, than the fragments of a sound frame take."""

    def __init__(self, file: Any, max_bytes: int) -> None:
        self._file, self._reads, self._num_bytes = file, 2 * _MAX_FRAGMENTS, max_bytes
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        """Read at most ``size`` bytes.

        Raises:
            UnreadableImage: It is too often or too much, or the file ends before.
        """
        data = self._file.read(min(size, self._num_bytes + 1))
        self._reads, self._num_bytes = self._reads - 1, self._num_bytes - len(data)
        if len(data) < size <= self._num_bytes and size > _MIN_ITEM_BYTES:
            raise UnreadableImage("is truncated within its pixels")
        if self._reads < 0 or self._num_bytes < 0:
            raise UnreadableImage("has a compressed frame that is too large for its size, or in too many fragments")
        return data


def _bits_that_count(values: np.ndarray, precision: int, layout: PixelLayout) -> int:
    """Return how many bits of decompressed values count: those stored, unless the compressed frame contradicts it.

    Signs are extended from the lower number: some files have the wider one, with the sign in all bits above. Unsigned
    values that need more bits than are stored keep them.
    """
    if layout.signed:
        return min(precision, layout.bits_stored)
    return layout.bits_stored if int(values.max()) >> layout.bits_stored == 0 else precision


def _lowest_bits(values: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    """Keep the lowest ``bits`` of each value, as signed or unsigned integers of the same size."""
    size = values.dtype.itemsize
    unsigned = values.view(f"u{size}") if values.dtype.kind == "i" else values
    if bits < 8 * size:
        unsigned = unsigned & values.dtype.type((1 << bits) - 1).astype(unsigned.dtype)
    if not signed:
        return unsigned
    signed_kind = np.dtype(f"i{size}")
    shift = 8 * size - bits
    return (unsigned << shift).view(signed_kind) >> shift if shift else unsigned.view(signed_kind)
