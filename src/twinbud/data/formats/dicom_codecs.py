"""Decode compressed DICOM frames with imagecodecs.

It has one maintained library for each compression (libjpeg-turbo, CharLS, OpenJPEG) and is installed anyway, for TIFF.
pydicom's usual plugin for JPEG, pylibjpeg-libjpeg, has the GPL, and refuses some JPEG files of 12 bits. Before a
decoder gets a frame, the size in the frame's own header is compared with that of the DICOM header.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from twinbud.data.formats.base import UnreadableImage
from twinbud.data.formats.dicom_header import uid_name
from twinbud.data.formats.dicom_layout import PixelLayout
from twinbud.data.formats.jpeg import check_scans, read_frame_header

_JPEG = {f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70)}
_JPEG_LS = {f"1.2.840.10008.1.2.4.{number}" for number in (80, 81)}
_JPEG_2000 = {f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 201, 202, 203)}
_RLE = "1.2.840.10008.1.2.5"
_MAX_JPEG_2000_SAMPLES = 60_000_000
"""Decoding takes six bytes of memory for each."""

Decoded = tuple[np.ndarray, int, str]
"""Values (H, W) or (H, W, 3), the number of bits of each, and the photometric interpretation."""


def decompress(syntax: str, layout: PixelLayout, data: bytes) -> Decoded:
    """Decode a compressed frame.

    Args:
        syntax: UID of the transfer syntax.
        layout: The layout by the DICOM header.
        data: The frame.

    Returns:
        Its values, of which the lowest bits count; how many bits; and ``RGB``, ``YBR_FULL`` or a kind of gray.

    Raises:
        UnreadableImage: The frame has another size than the header says, or its compression is not supported. The
            decoders raise errors of their own for damage.
    """
    if syntax in _JPEG:
        values, bits, photometric = _jpeg(layout, data)
    elif syntax in _JPEG_LS:
        bits = _check_jpeg(layout, data)[0]
        values, photometric = _decode("jpegls_decode", data), layout.photometric
    elif syntax in _JPEG_2000:
        values, bits, photometric = _jpeg_2000(layout, data)
    else:
        require_supported(syntax)
        values, bits, photometric = _run_lengths(layout, data), layout.bits_stored, layout.photometric
    shape = (layout.rows, layout.columns, layout.samples)[: 2 if layout.samples == 1 else 3]
    if values.shape != shape:
        raise UnreadableImage(f"has a compressed frame that decodes to {values.shape} values instead of {shape}")
    if photometric in ("YBR_RCT", "YBR_ICT"):
        raise UnreadableImage(f"has {photometric} colors, which only JPEG 2000 has")
    return values, bits, "YBR_FULL" if photometric.startswith("YBR") else photometric


def require_supported(syntax: str) -> None:
    """Refuse a transfer syntax, of compressed pixels or of a manufacturer, that nothing here decodes.

    Raises:
        UnreadableImage: It is such a one.
    """
    if syntax not in {*_JPEG, *_JPEG_LS, *_JPEG_2000, _RLE}:
        name = uid_name(syntax)
        raise UnreadableImage(f"has a transfer syntax that is not supported{f' ({name})' if name else ''}")


def _decode(name: str, data: bytes, **options: Any) -> np.ndarray:
    import imagecodecs

    return np.asarray(getattr(imagecodecs, name)(data, **options))


def _jpeg(layout: PixelLayout, data: bytes) -> Decoded:
    bits, colors = _check_jpeg(layout, data)
    if layout.samples == 1:
        return _decode("jpeg8_decode", data), bits, layout.photometric
    # one color space in and out: samples come as they are stored
    values = _decode("jpeg8_decode", data, colorspace="rgb", outcolorspace="rgb")
    return values, bits, colors or layout.photometric


def _check_jpeg(layout: PixelLayout, data: bytes) -> tuple[int, str | None]:
    """Return the bits of a sample, and the colors if the JPEG or JPEG-LS header tells them: they then count."""
    header = read_frame_header(data)
    if header is None:
        raise UnreadableImage("has a damaged JPEG header")
    _require_size(layout, header.height, header.width, len(header.component_ids))
    check_scans(header.width, header.height, data)
    colors = None if header.adobe_transform is None else "YBR_FULL" if header.adobe_transform else "RGB"
    return header.bits, "RGB" if header.component_ids == b"RGB" else colors


def _jpeg_2000(layout: PixelLayout, data: bytes) -> Decoded:
    start = data.find(b"\xff\x4f\xff\x51", 0, 4096)  # some files have the boxes of a JP2 file before it
    size = data[start + 8 : start + 43]
    if start < 0 or len(size) < 35:
        raise UnreadableImage("has a damaged JPEG 2000 header")
    right, bottom, left, top = (int.from_bytes(size[at : at + 4], "big") for at in (0, 4, 8, 12))
    _require_size(layout, bottom - top, right - left, int.from_bytes(size[32:34], "big"))
    count = layout.rows * layout.columns * layout.samples
    if count > _MAX_JPEG_2000_SAMPLES:
        limit = _MAX_JPEG_2000_SAMPLES // 10**6
        raise UnreadableImage(f"holds {count / 1e6:.0f} million JPEG 2000 samples (the limit is {limit} million)")
    photometric = "RGB" if layout.photometric in ("YBR_RCT", "YBR_ICT") else layout.photometric  # the decoder undoes it
    return _decode("jpeg2k_decode", data), (size[34] & 0x7F) + 1, photometric


def _require_size(layout: PixelLayout, height: int, width: int, components: int) -> None:
    if (height, width, components) != (layout.rows, layout.columns, layout.samples):
        raise UnreadableImage(
            f"has {layout.columns}×{layout.rows} pixels of {layout.samples} samples by its DICOM header, and "
            f"{width}×{height} of {components} by that of the compressed frame"
        )


def _run_lengths(layout: PixelLayout, data: bytes) -> np.ndarray:
    """Decode RLE: each byte of a value has a segment of its own, so that colors are planes."""
    import imagecodecs

    if layout.bits_allocated == 1:
        raise UnreadableImage("has RLE pixels of 1 bit, which is not supported")
    kind = np.dtype(f"<u{layout.bits_allocated // 8}")
    num_bytes = layout.rows * layout.columns * layout.samples * kind.itemsize  # RLE knows no subsampled colors
    values = np.frombuffer(imagecodecs.dicomrle_decode(data, kind, out=num_bytes), kind)
    values = values.reshape(layout.samples, layout.rows, layout.columns)
    return values[0] if layout.samples == 1 else values.transpose(1, 2, 0)
