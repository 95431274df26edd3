"""The header of JPEG files, and of JPEG-LS, which has the same structure; no decoder is needed to read it."""

from __future__ import annotations

from dataclasses import dataclass

from twinbud.data.formats.base import UnreadableImage

_MAX_SCAN_MEGAPIXELS = 20_000
"""A JPEG may hold many scans of a few bytes, each of which visits every pixel: this many take two seconds."""
_OTHER_FRAMES = (0xC4, 0xC8, 0xCC)
"""Markers among those of frames that start no frame: tables and an extension."""
_JPEG_LS = 0xF7
_ADOBE = 0xEE


@dataclass(frozen=True, kw_only=True)
class JpegFrame:
    """What the header of a frame says.

    Attributes:
        bits: Bits of a sample.
        width: Width in pixels.
        height: Height in pixels.
        component_ids: The number of each component, as the file has it.
        adobe_transform: What Adobe's marker says: 0 for RGB, 1 for YCbCr; None without that marker.
    """

    bits: int
    width: int
    height: int
    component_ids: bytes
    adobe_transform: int | None


def read_frame_header(contents: bytes) -> JpegFrame | None:
    """Return the first frame header of a JPEG or JPEG-LS file; None if the file is damaged before it."""
    place, adobe = 2, None
    while place + 10 <= len(contents) and contents[place] == 0xFF:
        marker, length = contents[place + 1], int.from_bytes(contents[place + 2 : place + 4], "big")
        if marker == 0xFF:
            place += 1
            continue
        if (0xC0 <= marker <= 0xCF and marker not in _OTHER_FRAMES) or marker == _JPEG_LS:
            segment = contents[place + 4 : place + 2 + length]
            if len(segment) < 6:
                return None
            return JpegFrame(
                bits=segment[0],
                height=int.from_bytes(segment[1:3], "big"),
                width=int.from_bytes(segment[3:5], "big"),
                component_ids=segment[6::3][: segment[5]],
                adobe_transform=adobe,
            )
        if marker == _ADOBE and contents[place + 4 : place + 9] == b"Adobe" and length >= 14:
            adobe = contents[place + 15]
        place += 2 + length
    return None


def check_scans(width: int, height: int, contents: bytes) -> None:
    """Refuse a file whose scans would take long to decode.

    Raises:
        UnreadableImage: It holds too many scans for its size.
    """
    # chance makes a few of these two bytes in an embedded film or profile, too few to matter
    scans = contents.count(b"\xff\xda")
    limit = int(_MAX_SCAN_MEGAPIXELS * 1e6 / (width * height))
    if scans > limit:
        raise UnreadableImage(f"holds {scans} scans, which take long to decode (the limit for its size is {limit})")
