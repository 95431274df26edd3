"""Bytes to pixels: one image file becomes (H, W, 3) uint8 RGB, by stated rules.

- 8-bit grey is repeated to three channels; 1-bit becomes 0 and 255.
- A palette or CMYK becomes RGB; transparency is composited on black.
- 16-bit, 32-bit-integer and float greys are scaled linearly, per image, so that the image's own minimum
  becomes 0 and its maximum 255 (a constant image becomes 0). Of 16-bit colour, the upper 8 bits are kept.
- The EXIF orientation is applied; a TIFF that stores white as zero is inverted, so that white is bright.

Everything here is safe to call from several threads: no global state of Pillow is read or changed.
"""

from __future__ import annotations

import errno
import hashlib
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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

from twinbud.core.errors import TwinbudError
from twinbud.core.files import read_bytes

MAX_FILE_BYTES = 208 * 2**20
"""Larger files are refused unread: 36 megapixels of 16-bit RGB, uncompressed, are 206 MiB."""
_MAX_SCAN_MEGAPIXELS = 20_000
"""A JPEG may be sent in many scans of a few bytes, each of which visits every pixel: this many take two seconds."""
_MAX_FRAMES_COUNTED = 1000
_PART_PIXELS = 2**20

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

    At most 512 MiB of memory are used up to 36 megapixels. Pillow may warn; see ``without_warnings``.

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
    contents = source if isinstance(source, bytes) else read_file(source, name)
    reader = _reader(contents, name)
    try:
        with reader(BytesIO(contents)) as image:
            _check_header(image, name, max_megapixels)
            _check_scans(image, contents, name)
            image.load()
            return _to_rgb(_upright(image), name)
    except (BrokenImageError, MemoryError):
        raise
    except Exception as error:  # Pillow meets a damaged file with OSError, SyntaxError, ValueError and more
        raise BrokenImageError(f"{_blame(error)} ({error})", name=name) from error


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keep Pillow silent of damaged metadata, which changes no pixel; to be entered before threads decode."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


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


def read_file(path: Path, name: str) -> bytes:
    """The contents of an image file.

    Raises:
        BrokenImageError: There is none, it cannot be opened, or it is too large.
    """
    try:
        return read_bytes(path, MAX_FILE_BYTES)
    except FileNotFoundError as error:
        raise BrokenImageError("no file (was it moved or removed?)", name=name) from error
    except OSError as error:
        if error.errno == errno.EFBIG:
            limit = f"an image file of at most {MAX_FILE_BYTES >> 20} MiB"
            raise BrokenImageError(str(error.strerror), name=name, expected=limit) from error
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
    frames = _count_frames(image)
    if frames > 1:
        more = " or more" if frames == _MAX_FRAMES_COUNTED else ""
        raise BrokenImageError(
            f"{frames}{more} frames",
            name=name,
            expected="an image of one frame",
            fix="Save the frames that matter as files of their own, or give --skip-broken to leave it out",
        )


def _count_frames(image: ImageFile) -> int:
    if not isinstance(image, TiffImageFile):
        return getattr(image, "n_frames", 1)
    # a TIFF tells no number: its frames are found one by one, and a long chain of them takes hours
    frames = 1
    with suppress(EOFError):
        while frames < _MAX_FRAMES_COUNTED:
            image.seek(frames)
            frames += 1
    image.seek(0)
    return frames


def _check_scans(image: ImageFile, contents: bytes, name: str) -> None:
    # chance makes a few of these two bytes in an embedded film or profile, too few to matter
    scans = contents.count(b"\xff\xda") if isinstance(image, JpegImageFile) else 0
    if scans * image.width * image.height > _MAX_SCAN_MEGAPIXELS * 1e6:
        raise BrokenImageError(f"a bomb of {scans} scans", name=name)


def _blame(error: Exception) -> str:
    return "a truncated file" if "truncated" in str(error).lower() else "a damaged file"


def _upright(image: ImageFile) -> Image.Image:
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else _keep_info(image.transpose(turn), image)


def _keep_info(turned: Image.Image, image: Image.Image) -> Image.Image:
    turned.info = dict(image.info)  # a transparent colour is kept there
    return turned


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
    wide = image.mode.startswith("I") or image.mode == "F"
    convert = _scaling_to_8_bits(image, name) if wide else _on_black
    rgb = np.empty((image.height, image.width, 3), np.uint8)
    for (left, top, right, bottom), part in _parts(image):
        rgb[top:bottom, left:right] = convert(part)
    return rgb


def _parts(image: Image.Image) -> Iterator[tuple[tuple[int, int, int, int], Image.Image]]:
    """The image and its boxes a few rows at a time, so that what is computed from it is never held as a whole."""
    width = min(image.width, _PART_PIXELS)
    height = _PART_PIXELS // width
    for top in range(0, image.height, height):
        for left in range(0, image.width, width):
            box = (left, top, min(left + width, image.width), min(top + height, image.height))
            yield box, image.crop(box)


def _on_black(image: Image.Image) -> np.ndarray:
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
    return np.asarray(image.convert("RGB"))


def _white_is_zero(image: Image.Image) -> bool:
    # Pillow inverts such TIFF files itself where a pixel has 8 bits, and only there
    tag = TiffImagePlugin.PHOTOMETRIC_INTERPRETATION
    return isinstance(image, TiffImageFile) and image.tag_v2.get(tag) == 0


def _scaling_to_8_bits(image: Image.Image, name: str) -> Callable[[Image.Image], np.ndarray]:
    """What turns a part of a wide grey image into (H, W, 1) uint8, from the whole image's minimum and maximum."""
    extremes = [(values.min(), values.max()) for values in (np.asarray(part) for _, part in _parts(image))]
    low, high = float(np.min(extremes)), float(np.max(extremes))
    if not math.isfinite(high - low):
        reason = "values that are not finite (NaN or infinity)"
        raise BrokenImageError(reason, name=name, expected="finite pixel values")
    inverted, scale = _white_is_zero(image), 255 / (high - low) if high > low else 0.0

    def convert(part: Image.Image) -> np.ndarray:
        values = np.asarray(part, np.float64)[:, :, None]
        return np.rint((high - values if inverted else values - low) * scale)

    return convert
