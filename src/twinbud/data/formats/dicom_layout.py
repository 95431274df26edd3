"""How the pixels of a DICOM file are stored, by its header."""

from __future__ import annotations

from dataclasses import dataclass

from twinbud.data.formats.base import UnreadableImage
from twinbud.data.formats.dicom_header import DicomHeader

_MONOCHROME = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
_COLOR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")


@dataclass(frozen=True, kw_only=True)
class PixelLayout:
    """How the values of a frame are stored, checked.

    Attributes:
        rows: Height in pixels.
        columns: Width in pixels.
        samples: Values of a pixel, 1 or 3.
        photometric: Photometric interpretation, as the file writes it.
        bits_allocated: Bits from one value to the next, if not compressed: 1, 8, 16 or 32.
        bits_stored: Bits of a value that count.
        high_bit: Position of the highest of them.
        signed: Whether values are two's complements.
        planar: Whether each color has a plane of its own, if not compressed.
    """

    rows: int
    columns: int
    samples: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    planar: bool

    @property
    def frame_bits(self) -> int:
        """Number of bits of a frame, if not compressed."""
        bits = self.rows * self.columns * self.samples * self.bits_allocated
        return bits * 2 // 3 if self.photometric == "YBR_FULL_422" else bits


def read_layout(header: DicomHeader) -> PixelLayout:
    """Read how pixels are stored.

    Raises:
        UnreadableImage: A number is missing or impossible, or the layout is not supported.
    """
    elements = header.elements
    samples, photometric = elements.integer("SamplesPerPixel", 1), elements.text("PhotometricInterpretation")
    allocated = elements.integer("BitsAllocated", 0)
    stored = elements.integer("BitsStored", allocated)
    layout = PixelLayout(
        rows=elements.integer("Rows", 0),
        columns=elements.integer("Columns", 0),
        samples=samples,
        photometric=photometric or "MONOCHROME2",
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=elements.integer("HighBit", stored - 1),
        signed=elements.integer("PixelRepresentation", 0) == 1,
        planar=samples == 3 and elements.integer("PlanarConfiguration", 0) == 1,
    )
    if not (layout.rows and layout.columns):
        raise UnreadableImage(f"has {layout.columns}×{layout.rows} pixels by its header")
    kinds = {1: _MONOCHROME, 3: _COLOR}.get(samples, ())
    if layout.photometric not in kinds:
        known = layout.photometric if layout.photometric in (*_MONOCHROME, *_COLOR) else "another interpretation"
        raise UnreadableImage(f"has pixels of {samples} samples with {known}, which is not supported")
    if allocated not in (1, 8, 16, 32) or not 1 <= stored <= allocated or (allocated == 1 and samples == 3):
        raise UnreadableImage(f"has pixels of {allocated} bits, {stored} of them stored, which is not supported")
    if not stored - 1 <= layout.high_bit < allocated:
        raise UnreadableImage(f"has its highest bit at {layout.high_bit}, outside its {allocated} bits")
    return layout
