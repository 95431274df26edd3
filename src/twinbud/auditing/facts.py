"""What the header of an image file says of its making: size, mode, format, compression, modality, manufacturer.

Nothing else of a header is read: no name, no id, no date.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from twinbud.core.files import read_head
from twinbud.data.formats.base import HEAD_BYTES
from twinbud.data.formats.decoding import without_warnings
from twinbud.data.formats.dicom import shown_modality
from twinbud.data.formats.dicom_header import recognizes, uid_name
from twinbud.data.formats.nifti import NiftiReader

UNKNOWN = "unknown"
_TAGS = ["Modality", "Manufacturer", "Rows", "Columns", "PhotometricInterpretation", "BurnedInAnnotation"]
_MAX_TEXT = 40


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """Facts of one file; ``unknown`` and 0 stand for what its header does not say.

    Attributes:
        width: In pixels.
        height: In pixels.
        mode: Pillow's mode (L, RGB, I;16), or the photometric interpretation of DICOM.
        format: Such as JPEG, PNG, DICOM.
        compression: Quantization of a JPEG (the sum of its luminance table: larger is coarser), the compression of a
            TIFF, or the transfer syntax of DICOM.
        modality: DICOM's.
        manufacturer: DICOM's.
        burned_in: DICOM's BurnedInAnnotation: YES or NO.
    """

    width: int = 0
    height: int = 0
    mode: str = UNKNOWN
    format: str = UNKNOWN
    compression: str = UNKNOWN
    modality: str = UNKNOWN
    manufacturer: str = UNKNOWN
    burned_in: str = UNKNOWN

    @property
    def size(self) -> str:
        """``width x height``, or unknown."""
        return f"{self.width} x {self.height}" if self.width else UNKNOWN

    def to_json(self) -> dict[str, str | int]:
        """Return a JSON object."""
        return asdict(self)


def read_facts(path: Path) -> FileFacts:
    """Return the facts of a file; a file that cannot be read has none."""
    try:
        head = read_head(path, HEAD_BYTES)
        if recognizes(head):
            return _dicom_facts(path)
        if NiftiReader().recognizes(head):
            return FileFacts(format="NIfTI")
        return _raster_facts(path)
    except Exception:
        return FileFacts()  # the images were decoded already: a header that Pillow or pydicom refuses is no news


def _raster_facts(path: Path) -> FileFacts:
    with without_warnings(), Image.open(path) as image:
        tables = getattr(image, "quantization", None)
        coarseness = f"JPEG tables of sum {sum(tables[min(tables)])}" if tables else None
        named = image.info.get("compression")
        return FileFacts(
            width=image.width,
            height=image.height,
            mode=image.mode,
            format=image.format or UNKNOWN,
            compression=coarseness or (str(named) if isinstance(named, str) else UNKNOWN),
        )


def _dicom_facts(path: Path) -> FileFacts:
    import pydicom

    with without_warnings(), path.open("rb") as file:
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS), force=True)
        syntax = getattr(header.file_meta, "TransferSyntaxUID", None)
        burned_in = header.get("BurnedInAnnotation")
        return FileFacts(
            width=int(header.get("Columns") or 0),
            height=int(header.get("Rows") or 0),
            mode=_text(header.get("PhotometricInterpretation")),
            format="DICOM",
            compression=(uid_name(str(syntax)) if syntax else None) or UNKNOWN,
            modality=shown_modality(str(header.get("Modality") or "")) or UNKNOWN,
            manufacturer=_text(header.get("Manufacturer")),
            burned_in=burned_in if burned_in in ("YES", "NO") else UNKNOWN,
        )


def _text(value: object) -> str:
    """Return one short line of plain characters: the field of a header may hold anything."""
    shown = " ".join(re.sub(r"[^\w .,()/&+-]", " ", str(value or "")).split())
    return shown[:_MAX_TEXT] or UNKNOWN
