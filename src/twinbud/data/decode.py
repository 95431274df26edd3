"""Bytes to pixels: one image file becomes (H, W, 3) uint8 RGB, by stated rules.

- 8-bit grey is repeated to three channels; 1-bit becomes 0 and 255.
- A palette or CMYK becomes RGB; transparency is composited on black.
- 16-bit, 32-bit-integer and float greys are scaled linearly, per image, so that the image's own minimum
  becomes 0 and its maximum 255 (a constant image becomes 0). Of 16-bit colour, the upper 8 bits are kept.
- The EXIF orientation is applied; a TIFF that stores white as zero is inverted, so that white is bright.

Everything here is safe to call from several threads: no global state of Pillow is read or changed.
"""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from twinbud.errors import TwinbudError

MAX_FILE_BYTES = 512 * 2**20
"""Larger files are refused unread: 100 megapixels of 32-bit float, uncompressed, are 400 MiB."""

# Pillow's readers are called directly, not through Image.open: that also consults a global pixel limit, whose
# warning could only be silenced by warnings.catch_warnings, which is not thread-safe. An MPO file starts as a
# JPEG, and its first picture is the one that counts, so the JPEG reader takes it.
_READERS: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"\xff\xd8\xff", JpegImageFile),
    (b"BM", BmpImageFile),
    (b"II*\x00", TiffImageFile),
    (b"MM\x00*", TiffImageFile),
    (b"II+\x00", TiffImageFile),
    (b"MM\x00+", TiffImageFile),
    (b"RIFF", WebPImageFile),
)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each value of the EXIF orientation tag."""


class BrokenImageError(TwinbudError):
    """An image file that cannot be used; `--skip-broken` leaves it out.

    Args:
        reason: What is wrong with the file, as a noun phrase ("a truncated file").
        name: The file, as it is reported.
        expected: What was needed of it.
        fix: What to do next.
    """

    def __init__(
        self,
        reason: str,
        *,
        name: str,
        expected: str = "a readable PNG, JPEG, BMP, TIFF or WebP image",
        fix: str = "Mend or remove the file, or give --skip-broken to leave it out and list it",
    ) -> None:
        self.reason = reason
        self.name = name
        super().__init__(expected, got=reason, where=name, fix=fix)


def decode(source: Path | bytes, *, name: str, max_megapixels: float) -> np.ndarray:
    """Read one image as RGB, by the rules at the head of this file.

    Args:
        source: The file, or its contents.
        name: What errors call it.
        max_megapixels: Largest number of pixels, in millions, checked before they are decoded.

    Returns:
        (H, W, 3) uint8, contiguous, channels in the order red, green, blue.

    Raises:
        BrokenImageError: A missing, empty, truncated, unreadable or disguised file, an image over the limit
            or of several frames, or a float image with values that are not finite.
    """
    contents = source if isinstance(source, bytes) else _read(source, name)
    reader = _reader(contents, name)
    try:
        with reader(BytesIO(contents)) as image:
            _check_header(image, name, max_megapixels)
            image.load()
            return _to_rgb(_upright(image), name)
    except (BrokenImageError, MemoryError):
        raise
    except Exception as error:  # Pillow meets a damaged file with OSError, SyntaxError, ValueError and more
        raise BrokenImageError(f"{_blame(error)} ({error})", name=name) from error


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Resize to a square, proportions not kept: bicubic with antialias, as timm does with crop_mode squash.

    Args:
        image: (H, W, 3) uint8.
        size: S, in pixels.

    Returns:
        (S, S, 3) uint8, bit-identical to torchvision's `Resize((S, S), BICUBIC)` on the same PIL image.
    """
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def digest(image: np.ndarray) -> str:
    """Name an image by its pixels: the SHA-256, in hexadecimal, of its shape and its decoded RGB values.

    Args:
        image: (H, W, 3) uint8 at full resolution. A grey file and an RGB file of equal channels give the
            same digest.
    """
    sha256 = hashlib.sha256(f"{image.shape}".encode())
    sha256.update(np.ascontiguousarray(image).data)
    return sha256.hexdigest()


def _read(path: Path, name: str) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            limit = f"an image file of at most {MAX_FILE_BYTES >> 20} MiB"
            raise BrokenImageError(f"{size / 2**20:.0f} MiB", name=name, expected=limit)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BrokenImageError("no file (was it moved or removed?)", name=name) from error
    except OSError as error:
        raise BrokenImageError(f"a file that cannot be opened ({error.strerror})", name=name) from error


def _reader(contents: bytes, name: str) -> type[ImageFile]:
    if not contents:
        raise BrokenImageError("an empty file (0 bytes)", name=name)
    for signature, reader in _READERS:
        if contents.startswith(signature) and (signature != b"RIFF" or contents[8:12] == b"WEBP"):
            return reader
    raise BrokenImageError("a file of another kind", name=name)


def _check_header(image: ImageFile, name: str, max_megapixels: float) -> None:
    megapixels = image.width * image.height / 1e6
    if megapixels > max_megapixels:
        raise BrokenImageError(
            f"{image.width}×{image.height} pixels ({megapixels:.1f} megapixels)",
            name=name,
            expected=f"an image of at most {max_megapixels:g} megapixels",
            fix="Shrink it, raise --max-megapixels, or give --skip-broken to leave it out and list it",
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise BrokenImageError(
            f"{frames} frames",
            name=name,
            expected="an image of one frame",
            fix="Save the frames that matter as files of their own, or give --skip-broken to leave it out",
        )


def _blame(error: Exception) -> str:
    return "a truncated file" if "truncated" in str(error).lower() else "a damaged file"


def _upright(image: ImageFile) -> Image.Image:
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else _keep_info(image.transpose(turn), image)


def _keep_info(turned: Image.Image, image: Image.Image) -> Image.Image:
    turned.info = dict(image.info)  # a transparent colour is kept there
    return turned


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        grey = _scale_to_8_bits(np.asarray(image, np.float64), name, inverted=_white_is_zero(image))
        return np.ascontiguousarray(np.broadcast_to(grey[:, :, None], (*grey.shape, 3)))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
    return np.array(image.convert("RGB"))


def _white_is_zero(image: Image.Image) -> bool:
    # Pillow inverts such TIFF files itself where a pixel has 8 bits, and only there
    tag = TiffImagePlugin.PHOTOMETRIC_INTERPRETATION
    return isinstance(image, TiffImageFile) and image.tag_v2.get(tag) == 0


def _scale_to_8_bits(values: np.ndarray, name: str, *, inverted: bool) -> np.ndarray:
    if not np.isfinite(values).all():
        reason = "values that are not finite (NaN or infinity)"
        raise BrokenImageError(reason, name=name, expected="finite pixel values")
    low, high = values.min(), values.max()
    if low == high:
        return np.zeros(values.shape, np.uint8)
    distance = high - values if inverted else values - low
    return np.rint(distance * (255 / (high - low))).astype(np.uint8)
