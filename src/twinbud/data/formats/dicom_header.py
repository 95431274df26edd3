"""Read the header of a DICOM file: the numbers that decoding needs, and nothing about the patient.

pydicom divides the file into elements, within the limits of ``dicom_elements.Budget``, which bound time and memory
whatever the file holds.
"""

from __future__ import annotations

import io
import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from twinbud.core.extras import import_extra
from twinbud.data.formats.base import NoPixels, UnreadableImage
from twinbud.data.formats.dicom_elements import TAGS, Budget, CountedFile, DicomElements

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PREAMBLE_BYTES, MAGIC = 128, b"DICM"
MAX_FRAMES = 65_536
_MAX_INFLATED_BYTES = 208 * 2**20
_UNDEFINED = 0xFFFFFFFF
_PIXEL_GROUP, _PIXELS = 0x7FE0, 0x7FE00010
_UNCOMPRESSED = {
    "1.2.840.10008.1.2": (True, True),
    "1.2.840.10008.1.2.1": (False, True),
    "1.2.840.10008.1.2.1.99": (False, True),
    "1.2.840.10008.1.2.2": (False, False),
}
"""Of each transfer syntax without compressed pixels, whether it has implicit VR, and whether it is little-endian."""
_DEFLATED = "1.2.840.10008.1.2.1.99"
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Their pixels are classes, not intensities."""
_VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)

_FIRST_ELEMENTS = {(0x0008, element) for element in (0x0000, 0x0001, 0x0005, 0x0008, 0x0012, 0x0016)}
"""What a dataset with implicit VR, which has little else to be known by, may start with."""
_FRAME_GROUPS = ("FrameVOILUTSequence", "PixelValueTransformationSequence")
"""Groups of an enhanced image that can hold the rescale and the window of a frame."""


@dataclass(frozen=True, kw_only=True)
class PixelPlace:
    """Where the pixels of a file are.

    Attributes:
        body: The file, inflated if need be.
        start: Offset of the first byte of the value of the pixel data.
        length: Its number of bytes; None where it is divided into fragments.
        vr: Its value representation, such as ``OW``; None where the file does not write it.
    """

    body: BinaryIO
    start: int
    length: int | None
    vr: str | None

    @property
    def available(self) -> int:
        """Number of bytes from the start of the value to the end of the file, or of the value if that comes first."""
        rest = self.body.seek(0, io.SEEK_END) - self.start
        return rest if self.length is None else min(rest, self.length)


@dataclass(frozen=True, kw_only=True)
class DicomHeader:
    """The header of a file with pixels.

    Attributes:
        elements: Its elements.
        transfer_syntax: UID of the encoding.
        implicit_vr: Whether the file writes no VRs.
        pixel_start: Offset of the element of the pixel data, in the inflated file if it is deflated.
        inflated: The inflated file; None if it is not deflated.
    """

    elements: DicomElements
    transfer_syntax: str
    implicit_vr: bool
    pixel_start: int
    inflated: bytes | None

    @property
    def is_compressed(self) -> bool:
        """Whether the pixels are compressed, by the transfer syntax."""
        return self.transfer_syntax not in _UNCOMPRESSED

    @property
    def num_frames(self) -> int:
        """Number of frames.

        Raises:
            UnreadableImage: The number cannot be.
        """
        number = next(iter(self.elements.decimals("NumberOfFrames")), 1.0) or 1.0
        if not (number == int(number) and 1 <= number <= MAX_FRAMES):
            raise UnreadableImage(f"announces {number:g} frames (the limit is {MAX_FRAMES:,})")
        return int(number)

    def of_frame(self, frame: int) -> tuple[DicomElements, ...]:
        """Return the elements that can hold the rescale and the window of a frame, the most specific ones first."""
        groups: list[DicomElements] = []
        budget = Budget()  # of this frame alone: the header is kept for all of them
        for sequence, number in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
            for item in self.elements.items(sequence)[number : number + 1]:
                for name in _FRAME_GROUPS:
                    groups += item.with_budget(budget).items(name)[:1]
        return (*groups, self.elements)

    def pixel_place(self, file: BinaryIO) -> PixelPlace:
        """Return where the pixels are; ``file`` is the one that the header was read from.

        Raises:
            UnreadableImage: The file ends before them, or they are floating-point numbers.
        """
        body = file if self.inflated is None else io.BytesIO(self.inflated)
        body.seek(self.pixel_start)
        head = body.read(12)
        order = "little" if self.elements.little_endian else "big"
        tag = int.from_bytes(head[:2], order) << 16 | int.from_bytes(head[2:4], order)
        if tag != _PIXELS:
            raise UnreadableImage("holds floating-point pixels, which are not supported")
        if self.implicit_vr:
            vr, length, start = None, int.from_bytes(head[4:8], order), self.pixel_start + 8
        else:
            vr, length, start = head[4:6].decode("latin-1"), int.from_bytes(head[8:12], order), self.pixel_start + 12
        return PixelPlace(body=body, start=start, length=None if length == _UNDEFINED else length, vr=vr)


def recognizes(head: bytes) -> bool:
    """Return whether a file that starts with ``head`` is DICOM: by its mark, or by its first element without one."""
    if head[PREAMBLE_BYTES : PREAMBLE_BYTES + 4] == MAGIC:
        return True
    order = "big" if head[:1] == b"\0" else "little"  # the numbers of both groups have one byte
    group, element = int.from_bytes(head[:2], order), int.from_bytes(head[2:4], order)
    if group not in (0x0002, 0x0008):
        return False
    length = int.from_bytes(head[4:8], "little")
    is_implicit = (group, element) in _FIRST_ELEMENTS and 0 < length <= 256 and length % 2 == 0
    return head[4:6] in _VRS or (is_implicit and len(head) > 8 + length)


def read_header(file: BinaryIO) -> DicomHeader:
    """Read the header of a file.

    Args:
        file: The file, at its start; it can seek.

    Raises:
        NoPixels: The file is sound and holds no image.
        UnreadableImage: It is damaged, or made to be slow.
        TwinbudError: pydicom is not installed.
    """
    import_extra("pydicom", "dicom", where="DICOM files", otherwise="leave such files out")
    budget = Budget()
    counted = budget.over(file)
    syntax, media_class = _read_meta(counted)
    inflated: bytes | None = None
    if syntax == _DEFLATED:
        inflated = _inflate(file.read())
        counted = budget.over(io.BytesIO(inflated))
    implicit, little = _encoding(counted, syntax)
    dataset, at = _read_elements(counted, implicit=implicit, little_endian=little)
    implicit = bool(dataset.original_encoding[0])  # pydicom notices where a file is unlike its transfer syntax
    elements = DicomElements(dataset, little_endian=little, budget=budget)
    sop_class = elements.text("SOPClassUID") or media_class
    if media_class == _MEDIA_DIRECTORY:
        raise NoPixels("a DICOMDIR, which lists other files")
    if sop_class in _SEGMENTATIONS:
        raise NoPixels(f"a segmentation ({uid_name(sop_class)})")
    is_image = "Image" in (uid_name(sop_class) or "") or ("Rows" in elements and "Columns" in elements)
    if not is_image:
        raise NoPixels(f"DICOM without pixels ({uid_name(sop_class) or 'of unknown kind'})")
    if at is None:
        raise UnreadableImage("is truncated: it ends before its pixels")
    return DicomHeader(
        elements=elements,
        transfer_syntax=syntax or next(uid for uid, kind in _UNCOMPRESSED.items() if kind == (implicit, little)),
        implicit_vr=implicit,
        pixel_start=at,
        inflated=inflated,
    )


def _read_meta(file: CountedFile) -> tuple[str, str]:
    """Return the UIDs of transfer syntax and class from the file meta information, "" where they are absent."""
    has_preamble = file.read(PREAMBLE_BYTES + 4)[PREAMBLE_BYTES:] == MAGIC
    if not has_preamble:
        file.seek(0)
    found = {0x0010: "", 0x0002: ""}
    while True:
        start = file.tell()
        head = file.read(8)
        if len(head) < 8 or head[:2] != b"\x02\0":
            file.seek(start)
            return found[0x0010], found[0x0002]
        is_long = head[4:6] in (b"OB", b"OW", b"UN", b"SQ", b"UT")
        length = int.from_bytes(file.read(4), "little") if is_long else int.from_bytes(head[6:8], "little")
        element = int.from_bytes(head[2:4], "little")
        if element in found and length <= 64:
            found[element] = file.read(length).decode("latin-1").strip(" \0")
        else:
            file.seek(file.tell() + length)


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(data, _MAX_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        raise UnreadableImage(f"holds more than {_MAX_INFLATED_BYTES >> 20} MiB when it is inflated")
    if not inflater.eof:
        raise UnreadableImage("is truncated")
    return inflated


def _encoding(file: CountedFile, syntax: str) -> tuple[bool, bool]:
    """Return whether the dataset has implicit VR, and whether it is little-endian; guess where nothing says it."""
    if syntax in _UNCOMPRESSED:
        return _UNCOMPRESSED[syntax]
    if syntax:
        return False, True
    start = file.tell()
    head = file.read(6)
    file.seek(start)
    return head[4:6] not in _VRS, head[:1] != b"\0"


def _read_elements(file: CountedFile, *, implicit: bool, little_endian: bool) -> tuple[Dataset, int | None]:
    """Return the elements of ``TAGS`` and the offset of the pixel data, None where there is none."""
    from pydicom.filereader import read_dataset

    found: list[bool] = []

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        del vr, length
        if tag >> 16 == _PIXEL_GROUP and tag & 0xFFFF >= 0x0008:
            found.append(True)
        return bool(found)

    counted: Any = file
    dataset = read_dataset(
        counted,
        implicit,
        little_endian,
        stop_when=at_pixels,
        specific_tags=list(TAGS.values()),
    )
    return dataset, file.tell() if found else None


def uid_name(uid: str) -> str | None:
    """Return the standard's name of a class or transfer syntax; None for other UIDs, which may be anything."""
    from pydicom.uid import UID

    name = UID(uid).name  # the UID itself where the standard has no name for it
    return None if name == uid else re.sub(r" Storage\b.*", "", name)
