"""Reads NIfTI-1 and NIfTI-2 volumes (``.nii``, ``.nii.gz``), slice by slice; needs the extra ``nifti``.

``nifti_header`` has the rules for what a file says of itself, ``volume`` those for slices and intensities. A file is
unpacked no further than to the end of the volume that is read. What is too large for the memory is mapped (``mapped``).
"""

from __future__ import annotations

import gzip
import mmap
import tempfile
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO, ClassVar, TypeVar

import numpy as np

from twinbud.config.reading import AUTO_WINDOW, DICOM_WINDOW, Plane, window_limits
from twinbud.data.formats.base import NO_UNITS, FileSurvey, ImageInfo, UnreadableImage
from twinbud.data.formats.mapped import Contents, map_file, stream_of
from twinbud.data.formats.nifti_header import HEAD_BYTES, NiftiHeader, is_nifti, read_header
from twinbud.data.formats.volume import Range, Volume, full_range, plane_size, render, robust_range, window_range

MAX_UNPACKED_BYTES = 360 * 2**20
"""Most that a compressed file and its unpacked bytes, up to the end of the volume, take together in memory."""
MAX_VOLUME_BYTES = 2**31
"""Largest volume, of a file that is mapped, or unpacked to a temporary file. Of a compressed file of several volumes,
those before it count."""
_GZIP = b"\x1f\x8b\x08"
_PACKED_HEAD_BYTES = 2**16
_STEP = 2**20
_Made = TypeVar("_Made")
_MAX_RATIO = 1100
"""Deflate makes no more bytes than 1,032 of one."""
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
        self._contents: Contents = b""
        self._header: NiftiHeader | None = None
        self._volume: Callable[[], Volume] | None = None
        self._ranges: dict[str | None, Callable[[], Range]] = {}

    def for_file(self, plane: Plane) -> NiftiReader:
        """Return a reader for one file."""
        return NiftiReader(plane)

    def recognizes(self, head: bytes) -> bool:
        """Return whether a file starts like a NIfTI file, compressed or not, or like half of a pair."""
        return is_nifti(head_of(head))

    def probe(self, contents: Contents) -> bool:
        """Return whether a file is NIfTI, or half of a pair."""
        return is_nifti(head_of(contents))

    def survey(self, file: BinaryIO, *, hashed: Callable[[str], str]) -> FileSurvey:  # noqa: ARG002 - names no patient
        """Count the slices, from the header; see ``SurveyedReader.survey``."""
        header = read_header(head_of(file.read(_PACKED_HEAD_BYTES)))
        count, _, _ = self._sizes(header)
        return FileSurvey(num_frames=count, is_volume=True, warnings=tuple(_warnings(header, self.plane)))

    def describe(self, contents: Contents) -> ImageInfo:
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

    def read(self, contents: Contents, *, frame: int, window: str | None) -> np.ndarray:
        """Decode a slice to (H, W, 3) uint8, by the rules of ``formats.volume``; see ``ImageReader.read``."""
        header = self._header_of(contents)
        if self._volume is None:
            self._volume = _once(partial(open_volume, contents, header, self.plane.volume or 0))
        volume = self._volume()
        if volume.is_rgb:
            if window not in (None, DICOM_WINDOW, AUTO_WINDOW):
                problem = f"holds colors (RGB24), to which the window {window} cannot apply"
                raise UnreadableImage(problem, NO_UNITS)
            return render(volume, self.plane.axis, frame, None)
        if window not in self._ranges:
            self._ranges[window] = _once(partial(_range, volume, window))
        return render(volume, self.plane.axis, frame, self._ranges[window]())

    def _header_of(self, contents: Contents) -> NiftiHeader:
        if self._header is None or contents is not self._contents:
            self._contents, self._header, self._volume, self._ranges = contents, None, None, {}
            self._header = read_header(head_of(contents))
        return self._header

    def _sizes(self, header: NiftiHeader) -> tuple[int, int, int]:
        """Return number, height and width of the slices, after a check that one volume is chosen."""
        count, chosen = header.num_volumes, self.plane.volume
        if chosen is None and count > 1:
            fix = f"Save one of them as a 3-D file, or train with --volume 0 to {count - 1}"
            raise UnreadableImage(f"holds {count} volumes ({header.sizes} voxels)", fix)
        if chosen is not None and chosen >= count:
            fix = f"Give files with a volume {chosen}, or train with --volume 0 to {count - 1}"
            raise UnreadableImage(f"has no volume {chosen} (number of volumes: {count})", fix)
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


def head_of(contents: Contents) -> bytes:
    """Return the first bytes of the unpacked file; of a damaged gzip stream what can be unpacked."""
    if not _is_packed(contents):
        return contents[:HEAD_BYTES]
    try:
        return zlib.decompressobj(wbits=31).decompress(contents[: 2**16], HEAD_BYTES)
    except zlib.error:
        return b""


def _is_packed(contents: Contents) -> bool:
    return contents[: len(_GZIP)] == _GZIP


def open_volume(contents: Contents, header: NiftiHeader, number: int) -> Volume:
    """Return one volume of a file in RAS+, without a copy if the file is not compressed.

    A compressed file that is too large for the memory is unpacked to a temporary file.

    Args:
        contents: Bytes of the file.
        header: Its header.
        number: Number of the volume, counted from 0.

    Raises:
        UnreadableImage: The file is truncated or damaged, or the volume is too large.
    """
    start = header.offset + number * header.volume_bytes
    if _is_packed(contents):
        samples = _unpack(contents, start, header)
    else:
        samples = _view(contents, start, header)
        _check_size(header, header.volume_bytes)
    flat = samples.view(header.dtype)
    color = (3,) if header.is_rgb else ()
    stored = flat.reshape(*color, *header.shape, order="F")
    from nibabel.orientations import apply_orientation

    stored = np.moveaxis(stored, 0, -1) if header.is_rgb else stored
    voxels = apply_orientation(stored, header.orientation)
    mapped = _mapped_file(samples)
    return Volume(voxels=voxels, flat=flat, slope=header.slope, intercept=header.intercept, mapped=mapped)


def _mapped_file(samples: np.ndarray) -> mmap.mmap | None:
    """Return the mapped file that an array is a view of; None if it is in memory."""
    owner: Any = samples.base
    owner = owner.obj if isinstance(owner, memoryview) else owner
    return owner if isinstance(owner, mmap.mmap) else None


def _check_size(header: NiftiHeader, num_bytes: int) -> None:
    if num_bytes > MAX_VOLUME_BYTES:
        raise UnreadableImage(
            f"is too large: {num_bytes / 2**20:.0f} MiB for {header.sizes} voxels, up to the end of the volume "
            f"(the limit is {MAX_VOLUME_BYTES >> 20} MiB)",
            "Crop it, save it with 16 bits a voxel, or divide it",
        )


def _view(contents: Contents, start: int, header: NiftiHeader) -> np.ndarray:
    if start + header.volume_bytes > len(contents):
        raise _truncated(header, start + header.volume_bytes, len(contents))
    return np.frombuffer(contents, np.uint8, count=header.volume_bytes, offset=start)


def _unpack(contents: Contents, start: int, header: NiftiHeader) -> np.ndarray:
    """Unpack one volume to memory or, if that would take too much, to a temporary file, which is mapped."""
    end = start + header.volume_bytes
    _check_size(header, end)
    if end > (most := _MAX_RATIO * len(contents)):  # before anything is written
        raise _truncated(header, end, most, "at most ")
    in_memory = isinstance(contents, bytes) and len(contents) + end <= MAX_UNPACKED_BYTES
    try:
        with gzip.GzipFile(fileobj=stream_of(contents)) as stream:
            if (skipped := stream.seek(start)) < start:
                raise _truncated(header, end, skipped)
            samples = _unpack_to_memory(stream, header) if in_memory else _unpack_to_file(stream, header)
            if len(samples) < header.volume_bytes:
                raise _truncated(header, end, start + len(samples))
            stream.read(1)  # where the file ends here, its checksum is compared
    except EOFError as error:
        raise UnreadableImage("is truncated (its gzip stream has no end)") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UnreadableImage("is damaged (its gzip stream)") from error
    except OSError as error:  # of the temporary file
        raise UnreadableImage(
            f"unpacks to {end / 2**20:.0f} MiB, for which a temporary file cannot be written ({error.strerror})",
            f"Free space in {tempfile.gettempdir()}, name another folder with TMPDIR, or save it without compression",
        ) from error
    return samples


def _unpack_to_memory(stream: gzip.GzipFile, header: NiftiHeader) -> np.ndarray:
    # the system gives memory to the pages that are written, so a header that lies takes none
    samples = np.empty(header.volume_bytes, np.uint8)
    return samples[: _fill(stream, samples)]


def _unpack_to_file(stream: gzip.GzipFile, header: NiftiHeader) -> np.ndarray:
    with tempfile.TemporaryFile(prefix="twinbud-") as file:
        left = header.volume_bytes
        while left and (data := stream.read(min(_STEP, left))):
            file.write(data)
            left -= len(data)
        file.flush()
        return np.frombuffer(map_file(file), np.uint8) if file.tell() else np.empty(0, np.uint8)


def _fill(stream: gzip.GzipFile, buffer: np.ndarray) -> int:
    """Read into a buffer until it is full or the stream ends; return the number of bytes."""
    done = 0
    while done < len(buffer) and (count := stream.readinto(buffer[done : done + _STEP].data)):
        done += count
    return done


def _truncated(header: NiftiHeader, expected: int, found: int, limit: str = "") -> UnreadableImage:
    problem = f"is truncated ({limit}{found} of {expected} bytes for {header.sizes} voxels)"
    return UnreadableImage(problem)
