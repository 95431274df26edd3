"""The header of a NIfTI file: what its samples are, where they are, and how the volume lies in the body.

``nibabel`` reads the fields and repairs what it repairs when it opens a file (the sign of ``pixdim``, an unknown code),
so that orientation and scaling are its own. The text fields of the header (description, names, extensions) may name a
patient: they are cleared before anything looks at the header, and no message quotes a value of another library.
"""

from __future__ import annotations

import logging
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from twinbud.core.extras import import_extra
from twinbud.data.formats.base import NoPixels, UnreadableImage

HEAD_BYTES = 544
"""What the longest header takes, and its flag of extensions."""
_SIZES = {348: "NIfTI-1", 540: "NIfTI-2"}
_MAGIC = {348: (344, 4), 540: (4, 8)}
"""Place and length of the magic string, by the size of the header."""
_SINGLE = {348: b"n+1\0", 540: b"n+2\0\r\n\x1a\n"}
_PAIR = {348: b"ni1\0", 540: b"ni2\0\r\n\x1a\n"}
_ANALYZE = {348: (b"\0\0\0\0",), 540: ()}
_TEXT_FIELDS = ("data_type", "db_name", "descrip", "aux_file", "intent_name")
_SAMPLES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8", 128: "u1",
}  # fmt: skip
"""Codes of ``datatype`` that are read, with the type of one sample."""
_RGB = 128
_OTHER_SAMPLES = {
    0: "samples of an unknown type", 1: "1-bit samples", 32: "complex samples (64 bits)", 255: "samples of mixed types",
    1536: "128-bit floating-point samples", 1792: "complex samples (128 bits)", 2048: "complex samples (256 bits)",
    2304: "RGBA samples",
}  # fmt: skip
_LABEL_INTENT = 1002
_CIFTI_INTENTS = range(3000, 3100)
_CONVERT = "Convert it with nibabel: nibabel.save(nibabel.load('scan.hdr'), 'scan.nii.gz')"
_SAVE_SAMPLES = "Save it as integers, as 32-bit or 64-bit floating-point numbers, or as RGB24"


@dataclass(frozen=True, kw_only=True, eq=False)
class NiftiHeader:
    """What is needed to read the samples.

    Attributes:
        shape: Size in voxels along the three axes, in the order of storage (the first varies fastest).
        num_volumes: Number of time points (or other volumes), 1 for a 3-D file.
        dtype: Type and byte order of one sample.
        is_rgb: Whether a voxel has three 8-bit samples.
        offset: Place of the first sample in the unpacked file, in bytes.
        slope: The value of a sample is ``sample * slope + intercept``.
        intercept: See ``slope``.
        orientation: (3, 2) as ``nibabel.orientations.io_orientation`` gives it: for each stored axis the axis of RAS+
            (x to the right, y to the front, z to the top) that is closest, and 1 or -1 for its direction.
        is_oriented: Whether the file says how it lies; else the default of nibabel holds, which is LAS.
        spacing: Distance of the voxels along the stored axes, in the unit of the file, usually mm.
    """

    shape: tuple[int, int, int]
    num_volumes: int
    dtype: np.dtype[Any]
    is_rgb: bool
    offset: int
    slope: float
    intercept: float
    orientation: np.ndarray
    is_oriented: bool
    spacing: tuple[float, float, float]

    @property
    def volume_bytes(self) -> int:
        """Size of one volume in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize * (3 if self.is_rgb else 1)

    @property
    def ras_shape(self) -> tuple[int, ...]:
        """Size in voxels along x, y and z of RAS+."""
        return tuple(self.shape[place] for place in self._stored_axes)

    @property
    def ras_spacing(self) -> tuple[float, ...]:
        """Distance of the voxels along x, y and z of RAS+."""
        return tuple(self.spacing[place] for place in self._stored_axes)

    @property
    def _stored_axes(self) -> list[int]:
        """The stored axes that become x, y and z."""
        return np.argsort(self.orientation[:, 0]).tolist()

    @property
    def sizes(self) -> str:
        """The size of the file in voxels, for messages: ``64×64×36×2``."""
        return "×".join(map(str, (*self.shape, *((self.num_volumes,) if self.num_volumes > 1 else ()))))


def is_nifti(head: bytes) -> bool:
    """Return whether a file starts with a header of NIfTI, of a NIfTI pair or of ANALYZE 7.5.

    Args:
        head: The first 348 bytes of the unpacked file, or more.
    """
    size = _header_size(head)
    return size is not None and _magic(head, size) in (_SINGLE[size], _PAIR[size], *_ANALYZE[size])


def read_header(head: bytes) -> NiftiHeader:
    """Read a header for which ``is_nifti`` holds.

    Args:
        head: The first ``HEAD_BYTES`` of the unpacked file, or all of it.

    Raises:
        NoPixels: It is a map of labels.
        UnreadableImage: It is half of a pair, or a CIFTI file; its samples, dimensions or scaling are not supported; or
            a number of it makes no sense.
        TwinbudError: nibabel is not installed.
    """
    size = _header_size(head)
    assert size is not None
    magic = _magic(head, size)
    if magic != _SINGLE[size]:
        if magic == _PAIR[size]:
            raise UnreadableImage(f"is half of a {_SIZES[size]} pair (.hdr and .img)", _CONVERT)
        raise UnreadableImage("is an ANALYZE 7.5 header (.hdr), which does not tell left from right", _CONVERT)
    if len(head) < size:
        raise UnreadableImage(f"is truncated ({len(head)} bytes of a header of {size})")
    header = _parse(head[:size], size)
    offset = _offset(header, size)
    _repair(header)
    if int(header["intent_code"]) == _LABEL_INTENT:
        raise NoPixels("a map of labels (intent code 1002)")
    if int(header["intent_code"]) in _CIFTI_INTENTS:
        fix = "Give volumes; 'wb_command -cifti-separate' takes them out of a CIFTI file"
        raise UnreadableImage("is a CIFTI file, whose values lie on surfaces instead of in images", fix)
    dtype, is_rgb = _sample_type(header)
    shape, num_volumes = _dimensions(header)
    slope, intercept = (1.0, 0.0) if is_rgb else _scaling(header)
    orientation, is_oriented = _orientation(header)
    x, y, z = (abs(float(step)) for step in header["pixdim"][1:4])
    return NiftiHeader(
        shape=shape,
        num_volumes=num_volumes,
        dtype=dtype,
        is_rgb=is_rgb,
        offset=offset,
        slope=slope,
        intercept=intercept,
        orientation=orientation,
        is_oriented=is_oriented,
        spacing=(x, y, z),
    )


def _header_size(head: bytes) -> int | None:
    for order in "<>":
        size = struct.unpack_from(f"{order}i", head)[0] if len(head) >= 4 else 0
        if size in _SIZES:
            return size
    return None


def _magic(head: bytes, size: int) -> bytes:
    place, length = _MAGIC[size]
    return head[place : place + length]


def _parse(block: bytes, size: int) -> Any:
    """Return the header as it is, without its text."""
    nifti = import_extra("nibabel", "nifti", where="NIfTI files")
    header = (nifti.Nifti1Header if size == 348 else nifti.Nifti2Header)(block, check=False)
    for name in _TEXT_FIELDS:
        if name in header.keys():  # noqa: SIM118 - it has no __contains__
            header[name] = b""
    return header


def _repair(header: Any) -> None:
    """Repair numbers as nibabel does when it opens a file."""
    silent = logging.Logger("nifti")
    silent.disabled = True
    try:
        # what nibabel would refuse is refused elsewhere in this file, in words of our own
        header.check_fix(logger=silent, error_level=100)
    except Exception as error:
        raise UnreadableImage("has a damaged header") from error


def _sample_type(header: Any) -> tuple[np.dtype[Any], bool]:
    code = int(header["datatype"])
    if code not in _SAMPLES:
        raise UnreadableImage(
            f"holds {_OTHER_SAMPLES.get(code, f'samples of an unknown type ({code})')}", _SAVE_SAMPLES
        )
    return np.dtype(_SAMPLES[code]).newbyteorder(header.endianness), code == _RGB


def _dimensions(header: Any) -> tuple[tuple[int, int, int], int]:
    """Return the size of a volume and the number of volumes."""
    num_dims, *sizes = map(int, header["dim"])
    if not 1 <= num_dims <= 7:
        raise UnreadableImage(f"has a damaged header (number of dimensions: {num_dims})")
    sizes = sizes[:num_dims]
    text = "×".join(map(str, sizes))
    if min(sizes) < 1:
        raise UnreadableImage(f"has a damaged header (size in voxels: {text})")
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) > 4:
        raise UnreadableImage(f"has {len(sizes)} dimensions ({text})", "Save the volumes to use as 3-D files")
    if len(sizes) == 1:
        raise UnreadableImage(f"has a single dimension ({text}), so it is no image", "Give volumes")
    x, y, z, num_volumes = (*sizes, 1, 1)[:4]
    return (x, y, z), num_volumes


def _scaling(header: Any) -> tuple[float, float]:
    """Return slope and intercept by the rules of nibabel: no slope, or one that is not finite, means no scaling."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0
    if not math.isfinite(intercept):
        raise UnreadableImage("has a damaged header (scl_inter is not finite)")
    return slope, intercept


def _offset(header: Any, size: int) -> int:
    offset = float(header["vox_offset"])
    if not (math.isfinite(offset) and size <= offset < 2**62):
        raise UnreadableImage(f"has a damaged header (vox_offset: {offset:g})")
    return int(offset)


def _orientation(header: Any) -> tuple[np.ndarray, bool]:
    """Return the closest orientation, and whether the file gives one: sform, else qform, else nibabel's default."""
    from nibabel.orientations import io_orientation

    try:
        with np.errstate(all="ignore"):
            orientation = np.asarray(io_orientation(header.get_best_affine()))
    except Exception as error:  # a rotation of impossible numbers: nibabel and numpy meet it with many types
        raise UnreadableImage("has a damaged header (no valid orientation)") from error
    if not np.isfinite(orientation).all():
        raise UnreadableImage("has a damaged header (its orientation leaves out an axis)")
    return orientation, bool(header["sform_code"] or header["qform_code"])
