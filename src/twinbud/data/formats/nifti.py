"""Reads NIfTI-1 and NIfTI-2 volumes (``.nii``, ``.nii.gz``), slice by slice; needs the extra ``nifti``.

``nifti_header`` has the rules for what a file says of itself, ``volume`` those for slices and intensities. A file is
unpacked no further than to the end of the volume that is read.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import BinaryIO, ClassVar, TypeVar

import numpy as np

from twinbud.config.reading import AUTO_WINDOW, DICOM_WINDOW, Plane, window_limits
from twinbud.data.formats.base import FileSurvey, ImageInfo, UnreadableImage
from twinbud.data.formats.nifti_header import HEAD_BYTES, NiftiHeader, is_nifti, read_header
from twinbud.data.formats.volume import Range, Volume, full_range, plane_size, render, robust_range, window_range

MAX_UNPACKED_BYTES = 360 * 2**20
"""Most that a compressed file and its unpacked bytes, up to the end of the volume, take together."""
_GZIP = b"\x1f\x8b\x08"
_PACKED_HEAD_BYTES = 2**16
_STEP = 2**20
_Made = TypeVar("_Made")
_SQUARE = 1.1
"""Pixels whose sides have a ratio of no more than this count as square."""


class NiftiReader:
    """Reader of the slices of NIfTI volumes.

    It keeps header, volume and range of the last file, or why there are none, for the other slices: each file needs a
    reader of its own, from ``for_file``.

    Args:
        plane: Direction of the slices, and which volume of a file of several.
    """

    formats: ClassVar[tuple[str, ...]] = ("NIfTI",)
    damage: ClassVar[tuple[type[Exception], ...]] = ()

    def __init__(self, plane: Plane | None = None) -> None:
        self.plane = plane or Plane()
        self._contents = b""
        self._header: NiftiHeader | None = None
        self._volume: Callable[[], Volume] | None = None
        self._ranges: dict[str | None, Callable[[], Range]] = {}

    def for_file(self, plane: Plane) -> NiftiReader:
        """Return a reader for one file."""
        return NiftiReader(plane)

    def recognizes(self, head: bytes) -> bool:
        """Return whether a file starts like a NIfTI file, compressed or not, or like half of a pair."""
        return is_nifti(head_of(head))

    def probe(self, contents: bytes) -> bool:
        """Return whether a file is NIfTI, or half of a pair."""
        return self.recognizes(contents)

    def survey(self, file: BinaryIO, *, hashed: Callable[[str], str]) -> FileSurvey:  # noqa: ARG002 - names no patient
        """Count the slices, from the header; see ``SurveyedReader.survey``."""
        header = read_header(head_of(file.read(_PACKED_HEAD_BYTES)))
        count, _, _ = self._sizes(header)
        return FileSurvey(num_frames=count, warnings=tuple(_warnings(header, self.plane)))

    def describe(self, contents: bytes) -> ImageInfo:
        """Read the size of a slice and their number; see ``ImageReader.describe``."""
        header = self._header_of(contents)
        count, height, width = self._sizes(header)
        return ImageInfo(
            width=width,
            height=height,
            num_frames=count,
            frames=f"{count} slices ({header.sizes} voxels)",
            has_named_frames=True,
        )

    def read(self, contents: bytes, *, frame: int, window: str | None) -> np.ndarray:
        """Decode a slice to (H, W, 3) uint8, by the rules of ``formats.volume``; see ``ImageReader.read``."""
        header = self._header_of(contents)
        if self._volume is None:
            self._volume = _once(partial(open_volume, contents, header, self.plane.volume or 0))
        volume = self._volume()
        if volume.is_rgb:
            if window not in (None, DICOM_WINDOW, AUTO_WINDOW):
                problem = f"holds colors (RGB24), to which --window {window} cannot apply"
                raise UnreadableImage(problem, "Leave out --window, or keep such files apart")
            return render(volume, self.plane.axis, frame, None)
        if window not in self._ranges:
            self._ranges[window] = _once(partial(_range, volume, window))
        return render(volume, self.plane.axis, frame, self._ranges[window]())

    def _header_of(self, contents: bytes) -> NiftiHeader:
        if self._header is None or contents is not self._contents:
            self._contents, self._header, self._volume, self._ranges = contents, None, None, {}
            self._header = read_header(head_of(contents))
        return self._header

    def _sizes(self, header: NiftiHeader) -> tuple[int, int, int]:
        """Return number, height and width of the slices, after a check that one volume is chosen."""
        count, chosen = header.num_volumes, self.plane.volume
        if chosen is None and count > 1:
            fix = f"Choose one with --volume 0 to {count - 1}, or save it as a 3-D file"
            raise UnreadableImage(f"holds {count} volumes ({header.sizes} voxels)", fix)
        if chosen is not None and chosen >= count:
            raise UnreadableImage(f"has no volume {chosen} (number of volumes: {count})")
        return plane_size(header.ras_shape, self.plane.axis)


def _once(make: Callable[[], _Made]) -> Callable[[], _Made]:
    """Return a function that calls ``make`` when it is first called, and later returns or raises the same again."""
    made: list[_Made] = []
    refused: list[UnreadableImage] = []

    def get() -> _Made:
        if refused:
            raise refused[0]
        if not made:
            try:
                made.append(make())
            except UnreadableImage as error:
                refused.append(UnreadableImage(error.problem, error.fix))  # without what its traceback holds
                raise
        return made[0]

    return get


def _range(volume: Volume, window: str | None) -> Range:
    if window in (None, DICOM_WINDOW):
        return robust_range(volume)
    return full_range(volume) if window == AUTO_WINDOW else window_range(volume, window, *window_limits(window))


def _warnings(header: NiftiHeader, plane: Plane) -> list[str]:
    """Return what to warn of, each as a clause that completes "3 files"."""
    warnings = []
    if not header.is_oriented:
        warnings.append("without an orientation, read as LAS (the default of nibabel): check left and right")
    _, *sides = plane_size(header.ras_spacing, plane.axis)
    if min(sides) > 0 and max(sides) / min(sides) > _SQUARE:
        warnings.append(f"with {plane.axis} pixels that are not square, used as they are stored")
    return warnings


def head_of(contents: bytes) -> bytes:
    """Return the first bytes of the unpacked file; of a damaged gzip stream what can be unpacked."""
    if not contents.startswith(_GZIP):
        return contents[:HEAD_BYTES]
    try:
        return zlib.decompressobj(wbits=31).decompress(contents[: 2**16], HEAD_BYTES)
    except zlib.error:
        return b""


def open_volume(contents: bytes, header: NiftiHeader, number: int) -> Volume:
    """Return one volume of a file in RAS+, without a copy if the file is not compressed.

    Args:
        contents: Bytes of the file.
        header: Its header.
        number: Number of the volume, counted from 0.

    Raises:
        UnreadableImage: The file is truncated or damaged, or would need too much memory.
    """
    start = header.offset + number * header.volume_bytes
    samples = _unpack(contents, start, header) if contents.startswith(_GZIP) else _view(contents, start, header)
    flat = samples.view(header.dtype)
    color = (3,) if header.is_rgb else ()
    stored = flat.reshape(*color, *header.shape, order="F")
    from nibabel.orientations import apply_orientation

    stored = np.moveaxis(stored, 0, -1) if header.is_rgb else stored
    voxels = apply_orientation(stored, header.orientation)
    return Volume(voxels=voxels, flat=flat, slope=header.slope, intercept=header.intercept)


def _view(contents: bytes, start: int, header: NiftiHeader) -> np.ndarray:
    if start + header.volume_bytes > len(contents):
        raise _truncated(header, start + header.volume_bytes, len(contents))
    return np.frombuffer(contents, np.uint8, count=header.volume_bytes, offset=start)


def _unpack(contents: bytes, start: int, header: NiftiHeader) -> np.ndarray:
    end = start + header.volume_bytes
    if len(contents) + end > MAX_UNPACKED_BYTES:
        raise UnreadableImage(
            f"is too large: {len(contents) / 2**20:.0f} MiB that unpack to {end / 2**20:.0f} MiB or more for "
            f"{header.sizes} voxels (the limit is {MAX_UNPACKED_BYTES >> 20} MiB together)",
            "Crop it, save it with 16 bits a voxel, or divide it",
        )
    try:
        with gzip.GzipFile(fileobj=BytesIO(contents)) as stream:
            if (skipped := stream.seek(start)) < start:
                raise _truncated(header, end, skipped)
            # the system gives memory to the pages that are written, so a header that lies takes none
            samples = np.empty(header.volume_bytes, np.uint8)
            if (filled := _fill(stream, samples)) < len(samples):
                raise _truncated(header, end, start + filled)
            stream.read(1)  # where the file ends here, its checksum is compared
    except EOFError as error:
        raise UnreadableImage("is truncated (its gzip stream has no end)") from error
    except (OSError, zlib.error) as error:
        raise UnreadableImage("is damaged (its gzip stream)") from error
    return samples


def _fill(stream: gzip.GzipFile, buffer: np.ndarray) -> int:
    """Read into a buffer until it is full or the stream ends; return the number of bytes."""
    done = 0
    while done < len(buffer) and (count := stream.readinto(buffer[done : done + _STEP].data)):
        done += count
    return done


def _truncated(header: NiftiHeader, expected: int, found: int) -> UnreadableImage:
    problem = f"is truncated ({found} of {expected} bytes for {header.sizes} voxels)"
    return UnreadableImage(problem)
