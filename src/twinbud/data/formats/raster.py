"""Reads PNG, JPEG, BMP, TIFF and WebP images with Pillow, and with tifffile where Pillow loses precision.

Palettes and CMYK become RGB, gray is repeated to three channels, transparency is composited on black, and the Exif
orientation is applied. Color profiles are ignored. ``formats.intensity`` has the rule for samples of more than 8 bits.

Everything here is safe to call from several threads: no global state of Pillow is read or changed.
"""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import ClassVar

import numpy as np
import tifffile
from PIL import ExifTags, Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from twinbud.config.reading import AUTO_WINDOW, Plane
from twinbud.data.formats import png, tiff
from twinbud.data.formats.base import NO_UNITS, ImageInfo, UnreadableImage
from twinbud.data.formats.intensity import boxes, scale_to_8_bits
from twinbud.data.formats.jpeg import check_scans, read_frame_header

# Pillow's readers are called directly, not through Image.open: that also consults a global pixel limit, whose
# warning could only be silenced by warnings.catch_warnings, which is not thread-safe. An MPO file starts as a
# JPEG, and its first picture is the one that counts, so the JPEG reader takes it.
_READERS: dict[bytes, type[ImageFile]] = {
    png.SIGNATURE: PngImageFile,
    b"\xff\xd8\xff": JpegImageFile,
    b"BM": BmpImageFile,
    **dict.fromkeys(tiff.SIGNATURES, TiffImageFile),
    b"RIFF": WebPImageFile,
}


class RasterReader:
    """Reader of the formats that Pillow opens; a file of several frames is refused, so ``frame`` is always 0."""

    formats: ClassVar[tuple[str, ...]] = ("PNG", "JPEG", "BMP", "TIFF", "WebP")
    damage: ClassVar[tuple[type[Exception], ...]] = (
        *(ArithmeticError, EOFError, LookupError, OSError, RuntimeError, SyntaxError, ValueError),
        *(struct.error, zlib.error, tifffile.TiffFileError),
    )

    def probe(self, contents: bytes) -> bool:
        """Return whether the file starts like a PNG, JPEG, BMP, TIFF or WebP file."""
        return _kind(contents) is not None

    def for_file(self, plane: Plane) -> RasterReader:  # noqa: ARG002 - images have no other plane
        """Return this reader, since its files share nothing between frames."""
        return self

    def describe(self, contents: bytes) -> ImageInfo:
        """Read size and number of frames; see ``ImageReader.describe``."""
        kind = _kind(contents)
        if kind is TiffImageFile:
            return tiff.describe(tiff.read_page(contents))
        with _open(contents) as image:
            if kind is JpegImageFile:
                check_scans(image.width, image.height, contents)
            return ImageInfo(width=image.width, height=image.height, num_frames=getattr(image, "n_frames", 1))

    def read(self, contents: bytes, *, frame: int, window: str | None) -> np.ndarray:
        """Decode the only frame to (H, W, 3) uint8; see ``ImageReader.read``.

        Raises:
            UnreadableImage: Another frame or a window in physical units is requested, or the frame cannot be decoded.
        """
        if frame:
            raise UnreadableImage(f"has no frame {frame}: this format has one frame")
        if window not in (None, AUTO_WINDOW):
            problem = f"holds no values in physical units, to which the window {window} could apply"
            raise UnreadableImage(problem, NO_UNITS)
        kind = _kind(contents)
        if kind is TiffImageFile:
            page = tiff.read_page(contents)
            if not tiff.decoded_by_pillow(page):
                return _upright(tiff.read_with_tifffile(contents, page), page.value("orientation", 1))
        with _open(contents, to_decode=True) as image:
            if kind is PngImageFile and png.is_16_bit_color(contents):
                rgb = png.read_16_bit_color(contents)
            else:
                image.load()
                rgb = _to_rgb(image)
            return _upright(rgb, _orientation(image))


def _kind(contents: bytes) -> type[ImageFile] | None:
    for signature, reader in _READERS.items():
        if contents.startswith(signature) and (signature != b"RIFF" or contents[8:12] == b"WEBP"):
            return reader
    return None


def _open(contents: bytes, *, to_decode: bool = False) -> ImageFile:
    kind = _kind(contents)
    assert kind is not None
    if kind is PngImageFile:
        return png.open_png(contents, check_data=to_decode)
    if kind is JpegImageFile:
        _check_precision(contents)
    try:
        return kind(BytesIO(contents))
    except SyntaxError as error:
        if kind is TiffImageFile:  # "unknown pixel mode"
            raise tiff.unsupported(tiff.read_page(contents)) from error
        raise


def _check_precision(contents: bytes) -> None:
    """Refuse JPEG files of more than 8 bits; Pillow takes them for damaged."""
    header = read_frame_header(contents)
    if header is not None and header.bits > 8:
        raise UnreadableImage(f"holds {header.bits}-bit JPEG samples", "Save it as 16-bit gray or RGB PNG or TIFF")


def _orientation(image: ImageFile) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata does not make pixels unreadable; Pillow meets it with many types
        return 1


def _upright(rgb: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the Exif orientation of (H, W, 3) pixels."""
    turns = {2: rgb[:, ::-1], 3: rgb[::-1, ::-1], 4: rgb[::-1], 5: rgb.swapaxes(0, 1), 6: np.rot90(rgb, -1)}
    turns |= {7: rgb.swapaxes(0, 1)[::-1, ::-1], 8: np.rot90(rgb)}
    return np.ascontiguousarray(turns.get(orientation, rgb))


def _to_rgb(image: ImageFile) -> np.ndarray:
    """Convert a decoded image; 16-bit PNG is the only one here with more than 8 bits."""
    if image.mode.startswith("I"):
        assert isinstance(image, PngImageFile)
        return scale_to_8_bits(image.size, png.gray_16_samples(image))
    rgb = np.empty((image.height, image.width, 3), np.uint8)
    for box in boxes(*image.size):
        left, top, right, bottom = box
        rgb[top:bottom, left:right] = _on_black(image.crop(box), image)
    return rgb


def _on_black(part: Image.Image, image: ImageFile) -> np.ndarray:
    part.info = dict(image.info)  # a transparent color is kept there
    if part.has_transparency_data:
        layer = part.convert("RGBA")
        part = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
    return np.asarray(part.convert("RGB"))
