"""From an image file to (H, W, 3) uint8 RGB pixels, whatever its format.

To add a format, write a reader for it (``formats.base.ImageReader``) and add it to ``READERS``; or, if its files are
recognized by content alone or hold several images (``formats.base.SurveyedReader``), to ``SURVEYED``.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from twinbud.config.reading import Plane
from twinbud.core.errors import TwinbudError, first_line
from twinbud.core.files import open_regular, read_bytes, read_head
from twinbud.data.formats.base import (
    HEAD_BYTES,
    REPAIR,
    BrokenImageError,
    FileSurvey,
    ImageInfo,
    ImageReader,
    NoPixels,
    SurveyedReader,
    UnreadableImage,
)
from twinbud.data.formats.dicom import DicomReader
from twinbud.data.formats.mapped import Contents, map_path
from twinbud.data.formats.nifti import NiftiReader, head_of
from twinbud.data.formats.nifti_header import is_nifti
from twinbud.data.formats.raster import RasterReader

SURVEYED: tuple[SurveyedReader, ...] = (DicomReader(), NiftiReader())
"""Readers of files that are surveyed before they are decoded."""
READERS: tuple[ImageReader, ...] = (*SURVEYED, RasterReader())
"""All readers; the first whose ``probe`` accepts a file reads it. A DICOM file may start like a TIFF file, too."""
_REPORT = "Report this error, which may be a fault of the reader"
MAX_FILE_BYTES = 208 * 2**20
"""Larger files are refused unread, but for volumes, which are mapped. 36 megapixels of 16-bit RGB are 206 MiB."""


def decode(
    source: Path | bytes,
    *,
    name: str,
    max_megapixels: float,
    frame: int | None = None,
    window: str | None = None,
    plane: Plane | None = None,
) -> np.ndarray:
    """Decode one image to RGB.

    Up to 36 megapixels, decoding takes at most 512 MiB of memory (more for large files that hardly compress). Pillow
    may warn; see ``without_warnings``.

    Args:
        source: The file, or its bytes.
        name: Name of the file in messages.
        max_megapixels: Largest number of pixels, in millions, checked before pixels are decoded.
        frame: Index of the frame, counted from 0; None for a file that holds a single frame.
        window: The intensity window as ``config.reading`` spells it; None for the default of the format.
        plane: Which slices of a volume ``frame`` counts; axial ones of a file's only volume by default.

    Returns:
        (H, W, 3) uint8, contiguous, channels in the order red, green, blue.

    Raises:
        BrokenImageError: The file is missing, empty, truncated, damaged, of an unknown format or of a layout that
            would be read wrongly; the image is too large; or ``frame`` names none of several frames.
    """
    contents = source if isinstance(source, bytes) else read_file(source, name)
    return ImageFile(contents, max_megapixels=max_megapixels, plane=plane).decode(frame, window, name=name)


class ImageFile:
    """One file, to decode its frames one after the other in one thread; what they share is read once.

    Args:
        contents: Bytes of the file, or a mapped file, as ``read_file`` returns it.
        max_megapixels: Largest number of pixels of a frame, in millions, checked before pixels are decoded.
        plane: Which slices of a volume are its frames; axial ones of a file's only volume by default.
    """

    def __init__(self, contents: Contents, *, max_megapixels: float, plane: Plane | None = None) -> None:
        self.contents, self.max_megapixels = contents, max_megapixels
        self._plane = plane or Plane()
        self._reader: ImageReader | None = None

    def decode(self, frame: int | None = None, window: str | None = None, *, name: str) -> np.ndarray:
        """Decode one frame to (H, W, 3) uint8; see ``decode`` of this module.

        Raises:
            BrokenImageError: See there.
        """
        try:
            if self._reader is None:
                self._reader = _find_reader(self.contents).for_file(self._plane)
            return _read(self._reader, self.contents, frame, window, self.max_megapixels)
        except UnreadableImage as error:
            raise BrokenImageError(f"the file {error.problem}", name=name, advice=error.fix or REPAIR) from error


def surveyor_of(path: Path) -> SurveyedReader | None:
    """Return the reader that surveys a file, judged by its first bytes; None for other files, and unreadable ones."""
    if not SURVEYED:
        return None
    try:
        head = read_head(path, HEAD_BYTES)
    except OSError:
        return None
    return next((reader for reader in SURVEYED if reader.recognizes(head)), None)


def survey(reader: SurveyedReader, path: Path, *, hashed: Callable[[str], str]) -> FileSurvey | None:
    """Return what a file holds, without decoding it; None for a file that ``decode`` refuses.

    Args:
        reader: The result of ``surveyor_of``.
        path: The file.
        hashed: See ``SurveyedReader.survey``.

    Raises:
        NoPixels: The file is sound and holds no image.
        TwinbudError: A package that the format needs is not installed.
    """
    try:
        with open_regular(path) as file:
            return reader.survey(file, hashed=hashed)
    except (NoPixels, TwinbudError, MemoryError):
        raise
    except Exception:  # whatever it is, decoding meets it again and names the file
        return None


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence the decoders' warnings of damaged metadata, which changes no pixel; enter before threads decode."""
    logs = [logging.getLogger(name) for name in ("tifffile", "pydicom")]
    were_disabled = [log.disabled for log in logs]
    with warnings.catch_warnings():
        for module in (r"PIL\.", r"tifffile", r"pydicom\."):
            warnings.filterwarnings("ignore", module=module)
        for log in logs:
            log.disabled = True
        try:
            yield
        finally:
            for log, was_disabled in zip(logs, were_disabled, strict=True):
                log.disabled = was_disabled


def digest(image: np.ndarray) -> str:
    """Return the SHA-256, in hexadecimal, of an image's shape and decoded RGB values.

    Args:
        image: (H, W, 3) uint8 at full resolution. A gray file and an RGB file of equal channels have the same digest.
    """
    sha256 = hashlib.sha256(f"{image.shape}".encode())
    sha256.update(np.ascontiguousarray(image).data)
    return sha256.hexdigest()


def read_file(path: Path, name: str) -> Contents:
    """Read an image file; map a volume that is too large to be in memory.

    Raises:
        BrokenImageError: The file is missing, cannot be opened or is too large.
    """
    try:
        return read_bytes(path, MAX_FILE_BYTES)
    except FileNotFoundError as error:
        raise BrokenImageError("the file does not exist (was it moved or removed?)", name=name) from error
    except OSError as error:
        if error.errno == errno.EFBIG:
            if is_nifti(head_of(read_head(path, HEAD_BYTES))):
                return map_path(path)
            problem = f"the file is larger than {MAX_FILE_BYTES >> 20} MiB ({error.strerror})"
            raise BrokenImageError(problem, name=name) from error
        raise BrokenImageError(f"the file cannot be opened ({error.strerror})", name=name) from error


def _read(
    reader: ImageReader, contents: Any, frame: int | None, window: str | None, max_megapixels: float
) -> np.ndarray:
    try:
        number = _check_header(reader.describe(contents), frame, max_megapixels)
        return reader.read(contents, frame=number, window=window)
    except (UnreadableImage, TwinbudError, MemoryError):
        raise
    except reader.damage as error:
        problem = "is truncated" if "truncated" in str(error).lower() else "is damaged"
        raise UnreadableImage(f"{problem} ({error})") from error
    except Exception as error:
        name = type(reader).__name__
        raise UnreadableImage(f"cannot be decoded: {name} failed ({first_line(error)})", _REPORT) from error


def _find_reader(contents: Contents) -> ImageReader:
    if not isinstance(contents, bytes):
        return NiftiReader()
    if not contents:
        raise UnreadableImage("is empty (0 bytes)")
    for reader in READERS:
        if reader.probe(contents):
            return reader
    *others, last = (name for reader in sorted(READERS, key=SURVEYED.__contains__) for name in reader.formats)
    raise UnreadableImage(f"is not a {', '.join(others)} or {last} image")


def _check_header(info: ImageInfo, frame: int | None, max_megapixels: float) -> int:
    """Return the index of the frame to read."""
    megapixels = info.width * info.height / 1e6
    if megapixels > max_megapixels:
        raise UnreadableImage(
            f"has {info.width}×{info.height} pixels ({megapixels:.1f} megapixels; the limit is {max_megapixels:g})",
            "Shrink it or raise --max-megapixels",
        )
    if frame is None and info.num_frames > 1:
        frames = info.frames or f"{info.num_frames} frames"
        fix = (
            f"Name one, 0 to {info.num_frames - 1}"
            if info.has_named_frames
            else "Save the frames to use as separate files"
        )
        raise UnreadableImage(f"holds {frames} instead of a single image", fix)
    frame = frame or 0
    if not 0 <= frame < info.num_frames:
        numbers = f"a frame of 0 to {info.num_frames - 1}" if info.num_frames > 1 else "frame 0"
        fix = f"Name {numbers}, or train with --frames middle or all"
        raise UnreadableImage(f"has no frame {frame} (number of frames: {info.num_frames})", fix)
    return frame
