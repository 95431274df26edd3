"""The elements of a DICOM header: those that decoding needs, their values read from bytes, within a budget.

pydicom divides a file into elements; their values are converted here. Its own conversion would quote the values of
damaged elements in warnings and errors, and those may be names.
"""

from __future__ import annotations

import io
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np

from twinbud.data.formats.base import UnreadableImage

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_MAX_READS = 250_000
"""An element takes two or three reads of a few microseconds; only a header that is made to be slow has so many."""
_MAX_HEADER_BYTES = 64 * 2**20
_MAX_VALUE_BYTES = 16 * 2**20
_ESCAPE = b"\x1b"
"""Begins the change to another character set within a text (ISO 2022)."""

TAGS: Final = {
    "SpecificCharacterSet": 0x00080005,
    "SOPClassUID": 0x00080016,
    "Modality": 0x00080060,
    "PatientID": 0x00100020,
    "PatientSex": 0x00100040,
    "StudyInstanceUID": 0x0020000D,
    "SeriesInstanceUID": 0x0020000E,
    "InstanceNumber": 0x00200013,
    "ImagePositionPatient": 0x00200032,
    "ImageOrientationPatient": 0x00200037,
    "SamplesPerPixel": 0x00280002,
    "PhotometricInterpretation": 0x00280004,
    "PlanarConfiguration": 0x00280006,
    "NumberOfFrames": 0x00280008,
    "Rows": 0x00280010,
    "Columns": 0x00280011,
    "BitsAllocated": 0x00280100,
    "BitsStored": 0x00280101,
    "HighBit": 0x00280102,
    "PixelRepresentation": 0x00280103,
    "PixelPaddingValue": 0x00280120,
    "PixelPaddingRangeLimit": 0x00280121,
    "BurnedInAnnotation": 0x00280301,
    "WindowCenter": 0x00281050,
    "WindowWidth": 0x00281051,
    "RescaleIntercept": 0x00281052,
    "RescaleSlope": 0x00281053,
    "VOILUTFunction": 0x00281056,
    "RedPaletteColorLookupTableDescriptor": 0x00281101,
    "GreenPaletteColorLookupTableDescriptor": 0x00281102,
    "BluePaletteColorLookupTableDescriptor": 0x00281103,
    "RedPaletteColorLookupTableData": 0x00281201,
    "GreenPaletteColorLookupTableData": 0x00281202,
    "BluePaletteColorLookupTableData": 0x00281203,
    "SegmentedRedPaletteColorLookupTableData": 0x00281221,
    "ModalityLUTSequence": 0x00283000,
    "LUTDescriptor": 0x00283002,
    "LUTData": 0x00283006,
    "VOILUTSequence": 0x00283010,
    "FrameVOILUTSequence": 0x00289132,
    "PixelValueTransformationSequence": 0x00289145,
    "SharedFunctionalGroupsSequence": 0x52009229,
    "PerFrameFunctionalGroupsSequence": 0x52009230,
}
"""The elements that are read, under the names that the standard gives them."""


class DicomElements:
    """The elements of a dataset or of one item of a sequence, by the names of ``TAGS``; values are read from bytes.

    Args:
        dataset: What pydicom read.
        little_endian: Order of the bytes of its numbers.
        budget: Bounds the reading of sequences.
    """

    def __init__(self, dataset: Dataset, *, little_endian: bool, budget: Budget) -> None:
        self._dataset, self.little_endian, self._budget = dataset, little_endian, budget
        self._items: dict[str, list[DicomElements]] = {}

    def __contains__(self, name: str) -> bool:
        return TAGS[name] in self._dataset

    def value(self, name: str) -> bytes:
        """Return the bytes of an element, b"" for one that is absent or empty."""
        element = self._element(name)
        return element.value if element is not None and isinstance(element.value, bytes) else b""

    def text(self, name: str) -> str:
        """Return an element as text without padding; each byte that is not ASCII becomes one character."""
        return self.value(name).decode("latin-1").strip(" \0")

    def decoded_text(self, name: str) -> str:
        """Return an element as text in the character set that the file names (PS3.3 C.12.1.1.2), without padding.

        Bytes that the set does not have, or for which none is named, are UTF-8 or, failing that, Latin-1.
        """
        from pydicom.charset import decode_bytes, default_encoding, python_encoding
        from pydicom.valuerep import TEXT_VR_DELIMS

        value = self.value(name)
        encodings = [python_encoding[term] for term in self.texts("SpecificCharacterSet") if term in python_encoding]
        if _ESCAPE in value and encodings:
            text = decode_bytes(value, encodings, TEXT_VR_DELIMS)
            if "\ufffd" not in text:  # which stands for bytes that the sets do not have
                return text.strip(" \0")
        named = [encoding for encoding in encodings[:1] if encoding != default_encoding]
        for encoding in (*named, "utf-8"):
            with suppress(UnicodeError, LookupError):
                return value.decode(encoding).strip(" \0")
        return self.text(name)

    def texts(self, name: str) -> list[str]:
        """Return the values of an element of several texts."""
        return [part.strip(" \0") for part in self.text(name).split("\\")]

    def decimals(self, name: str) -> list[float]:
        """Return the values of an element of decimal texts (DS, IS); text that is no number ends the list."""
        numbers: list[float] = []
        for text in self.texts(name):
            try:
                numbers.append(float(text))
            except ValueError:
                break
        return [] if not np.isfinite(numbers).all() else numbers

    def integers(self, name: str, *, signed: bool = False) -> list[int]:
        """Return the values of an element of 16-bit integers."""
        value = self.value(name)
        kind = f"{'<' if self.little_endian else '>'}{'i' if signed else 'u'}2"
        return np.frombuffer(value[: len(value) & ~1], kind).tolist()

    def integer(self, name: str, default: int) -> int:
        """Return the first of the values of an element of 16-bit integers."""
        return next(iter(self.integers(name)), default)

    def items(self, name: str) -> list[DicomElements]:
        """Return the items of a sequence, which is read once: the frames of a file ask for it one after the other.

        Raises:
            UnreadableImage: The sequence is too long to be read.
        """
        if name not in self._items:
            self._items[name] = self._read_items(name)
        return self._items[name]

    def _read_items(self, name: str) -> list[DicomElements]:
        element = self._element(name)
        if element is None:
            return []
        found = element.value
        if isinstance(found, bytes):  # of defined length: pydicom has not divided it yet
            from pydicom.filereader import read_sequence

            file: Any = self._budget.over(io.BytesIO(found))
            found = read_sequence(file, element.is_implicit_VR, self.little_endian, len(found), "latin-1")
        return [DicomElements(item, little_endian=self.little_endian, budget=self._budget) for item in found or []]

    def with_budget(self, budget: Budget) -> DicomElements:
        """Return the same elements, whose sequences are read within another budget."""
        return DicomElements(self._dataset, little_endian=self.little_endian, budget=budget)

    def _element(self, name: str) -> Any:
        return self._dataset.get_item(TAGS[name]) if TAGS[name] in self._dataset else None


class Budget:
    """How much of a header may still be read, in calls and in bytes.

    A file of unknown origin may nest sequences a million deep or announce gigabytes. Reading is counted, not timed, so
    that the same file is refused on every machine.
    """

    def __init__(self) -> None:
        self.reads, self.num_bytes = _MAX_READS, _MAX_HEADER_BYTES

    def over(self, file: BinaryIO) -> CountedFile:
        """Return the file with this budget."""
        return CountedFile(file, self)


class CountedFile:
    """A file whose reading is counted."""

    def __init__(self, file: BinaryIO, budget: Budget) -> None:
        self._file, self._budget = file, budget
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        """Read at most ``size`` bytes.

        Raises:
            UnreadableImage: The budget is spent.
        """
        data = self._file.read(min(size, _MAX_VALUE_BYTES + 1))
        self._budget.reads -= 1
        self._budget.num_bytes -= len(data)
        if self._budget.reads < 0 or self._budget.num_bytes < 0 or len(data) > _MAX_VALUE_BYTES:
            raise UnreadableImage("has a header that is too long or too deeply nested to be read")
        return data
