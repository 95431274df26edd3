"""Reads DICOM images; see docs/dicom.md for what is read how.

Nothing that a file says about a patient leaves this module but as a key that ``survey`` gets hashed. Errors name
numbers of the image and names of the standard, never values of other elements; the errors of pydicom and of the
decoders, which may quote values, are replaced.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, ClassVar

import numpy as np

from twinbud.config.reading import Plane
from twinbud.core.errors import TwinbudError
from twinbud.data.formats.base import FileSurvey, ImageInfo, Trait, UnreadableImage
from twinbud.data.formats.dicom_elements import DicomElements
from twinbud.data.formats.dicom_header import DicomHeader, PixelPlace, read_header, recognizes
from twinbud.data.formats.dicom_layout import PixelLayout, read_layout
from twinbud.data.formats.dicom_pixels import check_extent, read_frame
from twinbud.data.formats.dicom_window import to_rgb
from twinbud.data.identity import comparison_key, is_missing_patient

_BURNED_IN = "may show patient data in their pixels (BurnedInAnnotation is YES)"

_MODALITY_WORDS = (
    "AU BDUS BI BMD CD CR CT CTPROTOCOL DG DMS DX EC ECG EM EPS ES FA FS FID GM HC HD IO IOL IVOCT IVUS KER KO LEN LP "
    "LS M3D MA MG MR MS NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR PT PX REG RESP RF RG RTDOSE "
    "RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF ST STAIN TEXTUREMAP TG US VA VF XA "
    "XAPROTOCOL XC"
)
_MODALITIES = frozenset(_MODALITY_WORDS.split())

_Opened = tuple[DicomHeader, PixelLayout, PixelPlace]


class DicomReader:
    """Reader of DICOM files with and without preamble; pydicom is imported when the first file is read."""

    formats: ClassVar[tuple[str, ...]] = ("DICOM",)
    damage: ClassVar[tuple[type[Exception], ...]] = ()

    def __init__(self) -> None:
        self._contents: bytes | None = None
        self._opened_file: _Opened | None = None

    def recognizes(self, head: bytes) -> bool:
        """Return whether a file starts like DICOM; see ``SurveyedReader.recognizes``."""
        return recognizes(head)

    def probe(self, contents: bytes) -> bool:
        """Return whether a file starts like DICOM."""
        return recognizes(contents[:512])

    def for_file(self, plane: Plane) -> DicomReader:  # noqa: ARG002 - its images are stored as planes
        """Return a reader for one file, which keeps its header: that of an enhanced image describes every frame."""
        return DicomReader()

    def survey(self, file: BinaryIO, *, hashed: Callable[[str], str]) -> FileSurvey:
        """Read frames, patient and series; see ``SurveyedReader.survey``."""
        with _without_values():
            header, layout, place = _open(file)
            check_extent(header, layout, place, header.num_frames)
            elements, num_frames = header.elements, header.num_frames
            patient, position = _patient(elements), _place_in_volume(elements)
            series = elements.text("SeriesInstanceUID") if position and num_frames == 1 else ""
            burned_in = elements.text("BurnedInAnnotation") == "YES"
            traits = tuple(_traits(elements, layout, hashed))
        return FileSurvey(
            num_frames=num_frames,
            patient=hashed(patient) if patient else None,
            series=hashed(f"series {series} {_volume(elements, layout)}") if series else None,
            position=position,
            warnings=(_BURNED_IN,) if burned_in else (),
            traits=traits,
        )

    def describe(self, contents: bytes) -> ImageInfo:
        """Read size and number of frames; see ``ImageReader.describe``."""
        with _without_values():
            header, layout, place = self._opened(contents)
            num_frames = header.num_frames
            if num_frames > 1:  # or the user would be asked to name one of frames that are not there
                check_extent(header, layout, place, num_frames)
            return ImageInfo(width=layout.columns, height=layout.rows, num_frames=num_frames, has_named_frames=True)

    def read(self, contents: bytes, *, frame: int, window: str | None) -> np.ndarray:
        """Decode one frame to (H, W, 3) uint8; see ``ImageReader.read``."""
        with _without_values():
            header, layout, place = self._opened(contents)
            check_extent(header, layout, place, header.num_frames)
            stored = read_frame(header, layout, place, frame=frame, num_frames=header.num_frames)
            return to_rgb(stored, header.of_frame(frame), window)

    def _opened(self, contents: bytes) -> _Opened:
        if self._opened_file is None or contents is not self._contents:
            self._contents, self._opened_file = contents, _open(io.BytesIO(contents))
        return self._opened_file


def shown_modality(text: str) -> str:
    """Return a modality if it is a word of the standard; any other text of a header may name a person."""
    return text if not text or text in _MODALITIES else "another one"


def _open(file: BinaryIO) -> _Opened:
    """Read what the frames of a file share."""
    header = read_header(file)
    return header, read_layout(header), header.pixel_place(file)


@contextmanager
def _without_values() -> Iterator[None]:
    """Replace each error that may quote the file."""
    try:
        yield
    except (UnreadableImage, TwinbudError, MemoryError):
        raise
    except Exception as error:  # pydicom and the decoders raise errors of many types
        # pydicom replaces some of the errors that it meets
        is_deep = isinstance(error, RecursionError) or isinstance(error.__context__, RecursionError)
        raise UnreadableImage("is nested too deeply" if is_deep else "is damaged or truncated") from None


def _patient(elements: DicomElements) -> str | None:
    """Return what tells the patient apart: the id or, where it is missing, the study, which is of one patient."""
    patient = elements.decoded_text("PatientID")
    if not is_missing_patient(patient):
        return f"patient {comparison_key(patient)}"
    study = elements.text("StudyInstanceUID")
    return f"study {study}" if study else None


def _place_in_volume(elements: DicomElements) -> tuple[float, ...]:
    """Return where an image is in its volume: along the normal of its plane, then by number; () outside volumes."""
    position, axes = elements.decimals("ImagePositionPatient"), elements.decimals("ImageOrientationPatient")
    if len(position) != 3 or len(axes) != 6:
        return ()
    normal = np.cross(axes[:3], axes[3:])
    return float(normal @ np.array(position)), *elements.decimals("InstanceNumber")[:1]


def _volume(elements: DicomElements, layout: PixelLayout) -> str:
    """Return what the images of one volume share within a series: size, orientation, modality, colors and patient."""
    kind = f"{layout.columns}x{layout.rows} {elements.text('Modality')} {layout.photometric} {_patient(elements)}"
    return f"{kind} {np.round(elements.decimals('ImageOrientationPatient'), 2).tolist()}"


def _traits(elements: DicomElements, layout: PixelLayout, hashed: Callable[[str], str]) -> Iterator[Trait]:
    """Yield what the images of a series share by the standard (modality, patient) or by habit, and a patient's sex."""
    series, patient = elements.text("SeriesInstanceUID"), _patient(elements)
    if series:
        key = hashed(f"series {series}")
        if modality := shown_modality(elements.text("Modality")):
            yield Trait(group="series", key=key, name="modality", value=modality)
        if patient:
            yield Trait(group="series", key=key, name="patient", value=hashed(patient), shown=False)
        yield Trait(group="series", key=key, name="size", value=f"{layout.columns}×{layout.rows}")
        yield Trait(group="series", key=key, name="photometric interpretation", value=layout.photometric)
    if patient and (sex := elements.text("PatientSex")) in ("M", "F"):
        yield Trait(group="patient", key=hashed(patient), name="sex", value=sex, shown=False)
