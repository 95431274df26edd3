"""DICOM pixels: the same array whatever the encoding, and the values that pydicom's own functions give."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut, convert_color_space
from pydicom.sequence import Sequence

from helpers.dicom_files import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    JPEG,
    JPEG_12,
    JPEG_2000_LOSSY,
    JPEG_LS_LOSSY,
    LOSSLESS,
    RLE,
    SR_CLASS,
    UNCOMPRESSED,
    dataset_of,
    dicom,
    file_of,
)
from twinbud.data.formats.base import BrokenImageError, FileSurvey, NoPixels
from twinbud.data.formats.decoding import ImageFile, decode, without_warnings
from twinbud.data.formats.dicom import DicomReader
from twinbud.data.formats.dicom_elements import CountedFile
from twinbud.data.identity import comparison_key

RAMP = np.add.outer(np.arange(24), np.arange(40))
GENERATOR = np.random.default_rng(0)
NOISY = (RAMP * 30 + GENERATOR.integers(0, 30, RAMP.shape)).astype(np.uint16)
"""0 to about 1900: 11 bits."""
HOUNSFIELD: dict[str, Any] = {"RescaleSlope": 1, "RescaleIntercept": -1024}


def read(contents: bytes, *, frame: int | None = None, window: str | None = None) -> np.ndarray:
    with without_warnings():
        return decode(contents, name="scan", max_megapixels=1, frame=frame, window=window)


def gray(contents: bytes, *, frame: int | None = None, window: str | None = None) -> np.ndarray:
    image = read(contents, frame=frame, window=window)
    assert (image[:, :, 0] == image[:, :, 1]).all()
    assert (image[:, :, 0] == image[:, :, 2]).all()
    return image[:, :, 0]


def refused(contents: bytes, **options: Any) -> str:
    with pytest.raises(BrokenImageError) as error:
        read(contents, **options)
    return str(error.value)


def survey(contents: bytes) -> FileSurvey:
    with without_warnings():
        return DicomReader().survey(io.BytesIO(contents), hashed=lambda text: f"key of {text}")


PIXELS = {
    "8 bits": (RAMP.astype(np.uint8), 8),
    "7 bits": ((RAMP * 2).clip(0, 127).astype(np.uint8), 7),
    "10 bits": ((NOISY // 2).astype(np.uint16), 10),
    "12 bits": (NOISY, 12),
    "16 bits": ((NOISY * 30).astype(np.uint16), 16),
    "12 bits, signed": (NOISY.astype(np.int16) - 900, 12),
    "16 bits, signed": ((NOISY.astype(np.int32) * 30 - 30000).astype(np.int16), 16),
    "8 bits, color": (np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=2).astype(np.uint8), 8),
}


@pytest.mark.parametrize("kind", PIXELS)
@pytest.mark.parametrize("syntax", LOSSLESS)
def test_the_same_pixels_give_the_same_array_in_every_lossless_syntax(kind: str, syntax: str) -> None:
    pixels, bits = PIXELS[kind]
    expected = read(dicom(pixels, EXPLICIT, bits=bits))
    assert expected.min() == 0
    np.testing.assert_array_equal(read(dicom(pixels, syntax, bits=bits)), expected)


def test_8_bit_values_are_kept_and_larger_ones_are_scaled_by_their_extremes() -> None:
    np.testing.assert_array_equal(gray(dicom(RAMP.astype(np.uint8))), RAMP)
    scaled = np.rint((NOISY - float(NOISY.min())) * (255 / np.ptp(NOISY)))
    np.testing.assert_array_equal(gray(dicom(NOISY, bits=12)), scaled)
    np.testing.assert_array_equal(gray(dicom(NOISY, bits=12, **HOUNSFIELD)), scaled)
    color, _ = PIXELS["8 bits, color"]
    np.testing.assert_array_equal(read(dicom(color)), color)


@pytest.mark.parametrize("syntax", [JPEG, JPEG_12, JPEG_LS_LOSSY, JPEG_2000_LOSSY])
def test_lossy_syntaxes_stay_near_the_pixels(syntax: str) -> None:
    smooth, bits = (RAMP.astype(np.uint8) * 3, 8) if syntax == JPEG else ((RAMP * 60).astype(np.uint16), 12)
    window: dict[str, Any] = {"WindowCenter": 2048, "WindowWidth": 4096} if bits == 12 else {}
    near = gray(dicom(smooth, syntax, bits=bits, **window)).astype(int)
    assert np.abs(near - gray(dicom(smooth, bits=bits, **window))).max() <= 6


@pytest.mark.parametrize("syntax", UNCOMPRESSED)
def test_bits_above_those_stored_do_not_count(syntax: str) -> None:
    """Old files keep overlays there."""
    dirty = NOISY | (GENERATOR.integers(0, 16, NOISY.shape).astype(np.uint16) << 12)
    np.testing.assert_array_equal(gray(dicom(dirty, syntax, bits=12)), gray(dicom(NOISY, syntax, bits=12)))


def test_values_may_start_above_the_lowest_bit() -> None:
    shifted = dicom((NOISY << 4).astype(np.uint16), bits=12, HighBit=15)
    np.testing.assert_array_equal(gray(shifted), gray(dicom(NOISY, bits=12)))


def test_pixels_of_one_bit_become_black_and_white_in_every_frame() -> None:
    mask = GENERATOR.integers(0, 2, (3, 5, 7)).astype(np.uint8)
    packed = np.packbits(mask.ravel(), bitorder="little").tobytes()
    contents = dicom(mask, frames=True, BitsAllocated=1, BitsStored=1, HighBit=0, PixelData=packed + b"\0" * 2)
    for frame in range(3):
        np.testing.assert_array_equal(gray(contents, frame=frame), 255 * mask[frame])


def test_values_of_32_bits_are_read_like_those_of_16() -> None:
    wide = NOISY.astype(np.uint32)
    np.testing.assert_array_equal(gray(dicom(wide)), gray(dicom(NOISY)))
    inverted = {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 900, "WindowWidth": 700}
    np.testing.assert_array_equal(gray(dicom(wide, **inverted)), gray(dicom(NOISY, **inverted)))


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG_ENDIAN])
def test_files_without_preamble_are_read(syntax: str) -> None:
    contents = dicom(NOISY, syntax, bits=12, preamble=False)
    assert b"DICM" not in contents
    np.testing.assert_array_equal(gray(contents), gray(dicom(NOISY, bits=12)))


def test_a_file_that_also_starts_like_a_tiff_is_dicom() -> None:
    contents = b"II*\0" + dicom(NOISY)[4:]
    np.testing.assert_array_equal(gray(contents), gray(dicom(NOISY)))


@pytest.mark.parametrize("syntax", UNCOMPRESSED)
def test_colors_in_planes_are_read_like_colors_by_pixel(syntax: str) -> None:
    color, _ = PIXELS["8 bits, color"]
    planes = np.ascontiguousarray(color.transpose(2, 0, 1))
    contents = dicom(color, syntax, PlanarConfiguration=1, PixelData=planes.tobytes())
    np.testing.assert_array_equal(read(contents), color)


def test_big_endian_words_of_8_bit_values_are_swapped() -> None:
    color, _ = PIXELS["8 bits, color"]
    dataset = dataset_of(color, PixelData=color.reshape(-1, 2)[:, ::-1].tobytes())
    dataset["PixelData"].VR = "OW"
    contents = file_of(dataset, BIG_ENDIAN).replace(b"\x7f\xe0\x00\x10OB", b"\x7f\xe0\x00\x10OW")
    np.testing.assert_array_equal(read(contents), color)


def test_big_endian_words_of_1_bit_values_are_swapped() -> None:
    mask = GENERATOR.integers(0, 2, (16, 24)).astype(np.uint8)
    packed = np.packbits(mask.ravel(), bitorder="little").reshape(-1, 2)[:, ::-1].tobytes()
    dataset = dataset_of(mask, BitsAllocated=1, BitsStored=1, HighBit=0, PixelData=packed)
    dataset["PixelData"].VR = "OW"
    np.testing.assert_array_equal(gray(file_of(dataset, BIG_ENDIAN)), 255 * mask)


@pytest.mark.parametrize("syntax", [EXPLICIT, RLE])
def test_ybr_colors_become_those_that_pydicom_computes(syntax: str) -> None:
    color, _ = PIXELS["8 bits, color"]
    expected = convert_color_space(color, "YBR_FULL", "RGB")
    np.testing.assert_array_equal(read(dicom(color, syntax, PhotometricInterpretation="YBR_FULL")), expected)


def test_two_pixels_share_the_colors_of_ybr_422() -> None:
    color, _ = PIXELS["8 bits, color"]
    shared = color.copy()
    shared[:, 1::2, 1:] = shared[:, ::2, 1:]
    pairs = np.concatenate([shared[:, ::2, :1], shared[:, 1::2, :1], shared[:, ::2, 1:]], axis=2)
    contents = dicom(color, PhotometricInterpretation="YBR_FULL_422", PixelData=pairs.tobytes())
    np.testing.assert_array_equal(read(contents), read(dicom(shared, PhotometricInterpretation="YBR_FULL")))


def test_jpeg_colors_are_those_that_the_jpeg_file_declares() -> None:
    import imagecodecs
    from pydicom.encaps import encapsulate

    color = np.zeros((24, 40, 3), np.uint8) + np.array([200, 60, 30], np.uint8)
    encoded = imagecodecs.jpeg8_encode(color, level=95)  # YCbCr
    for photometric in ("YBR_FULL", "YBR_FULL_422"):
        dataset = dataset_of(color, PhotometricInterpretation=photometric, PixelData=encapsulate([bytes(encoded)]))
        dataset["PixelData"].is_undefined_length = True
        assert np.abs(read(file_of(dataset, JPEG)).astype(int) - color).max() <= 3


@pytest.mark.parametrize("bits", [8, 16])
def test_palettes_are_looked_up(bits: int) -> None:
    tables = GENERATOR.integers(0, 256, (3, 100)).astype(np.uint16)
    scale = 257 if bits == 16 else 1
    elements: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for color, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        elements[f"{color}PaletteColorLookupTableDescriptor"] = [100, 10, bits]
        elements[f"{color}PaletteColorLookupTableData"] = (table * scale).astype(f"<u{bits // 8}").tobytes()
    pixels = RAMP.astype(np.uint8) * 2
    expected = tables[:, np.clip(pixels.astype(int) - 10, 0, 99)].transpose(1, 2, 0)
    np.testing.assert_array_equal(read(dicom(pixels, **elements)), expected)
    assert "holds colors, not values in physical units" in refused(dicom(pixels, **elements), window="lung")


@pytest.mark.parametrize("num_entries", [100, 101])
@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG_ENDIAN])
def test_palettes_of_8_bits_have_two_entries_a_word(syntax: str, num_entries: int) -> None:
    table = GENERATOR.integers(0, 256, num_entries).astype(np.uint8)
    words = np.frombuffer(table.tobytes() + b"\0" * (num_entries % 2), "<u2")
    pixels = RAMP.astype(np.uint8)
    dataset = dataset_of(pixels, PhotometricInterpretation="PALETTE COLOR", PixelData=pixels.tobytes())
    for color in ("Red", "Green", "Blue"):
        setattr(dataset, f"{color}PaletteColorLookupTableDescriptor", [num_entries, 0, 8])
        data = words.astype(">u2" if syntax == BIG_ENDIAN else "<u2").tobytes()
        dataset.add_new(f"{color}PaletteColorLookupTableData", "OW", data)
    np.testing.assert_array_equal(gray(file_of(dataset, syntax)), table[RAMP])


def by_pydicom(contents: bytes, low: float, high: float) -> np.ndarray:
    """What pydicom's functions make of the first frame, from ``low`` as 0 to ``high`` as 255."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(io.BytesIO(contents))
        values = apply_modality_lut(dataset.pixel_array, dataset)
        shown = apply_voi_lut(values, dataset).astype(np.float64)
    shown = np.rint((shown - low) * (255 / (high - low))).astype(np.uint8)
    return 255 - shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
@pytest.mark.parametrize(("center", "width"), [(40, 400), (-100.5, 333), ([0, 50], [1000, 9]), (0, 1)])
def test_windows_of_the_file_are_applied_as_pydicom_does(
    center: Any, width: Any, function: str | None, photometric: str
) -> None:
    elements: dict[str, Any] = {"WindowCenter": center, "WindowWidth": width, "PhotometricInterpretation": photometric}
    if function:
        elements["VOILUTFunction"] = function
    contents = dicom(NOISY, bits=12, **elements, **HOUNSFIELD)
    shown = gray(contents)
    np.testing.assert_array_equal(shown, by_pydicom(contents, -1024, 4095 - 1024))
    assert len(np.unique(shown)) > 1


def lut_item(entries: np.ndarray, first: int, bits: int) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item["LUTDescriptor"].VR = "US"
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return item


def test_lookup_tables_are_applied_as_pydicom_does() -> None:
    modality = lut_item(np.sort(GENERATOR.integers(0, 1 << 12, 1500)), 100, 16)
    voi = lut_item(np.sort(GENERATOR.integers(0, 1 << 10, 3000)), 50, 10)
    only_modality = dicom(NOISY, bits=12, ModalityLUTSequence=Sequence([modality]), WindowCenter=900, WindowWidth=1500)
    np.testing.assert_array_equal(gray(only_modality), by_pydicom(only_modality, 0, 65535))
    both = dicom(
        NOISY, IMPLICIT, bits=12, ModalityLUTSequence=Sequence([modality]), VOILUTSequence=Sequence([voi]),
        WindowCenter=5, WindowWidth=6,
    )  # fmt: skip
    np.testing.assert_array_equal(gray(both), by_pydicom(both, 0, 1023))


@pytest.mark.parametrize(("vr", "first"), [("SS", -1024), ("US", (1 << 16) - 1024)])
@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_a_voi_lut_may_start_below_zero_where_unsigned_values_do_after_the_rescale(
    syntax: str, vr: str, first: int
) -> None:
    item = lut_item(np.arange(1 << 12), 0, 12)
    item.add_new("LUTDescriptor", vr, [1 << 12, first, 12])
    contents = dicom(NOISY, syntax, bits=12, VOILUTSequence=Sequence([item]), **HOUNSFIELD)
    np.testing.assert_array_equal(gray(contents), np.rint(NOISY * (255 / 4095)))


def test_named_windows_and_numbers_are_in_the_units_after_the_rescale() -> None:
    contents = dicom(NOISY, bits=12, **HOUNSFIELD)
    for window, (center, width) in {"lung": (-600, 1500), "brain": (40, 80), "10,20.5": (10, 20.5)}.items():
        named = dicom(NOISY, bits=12, WindowCenter=center, WindowWidth=width, **HOUNSFIELD)
        np.testing.assert_array_equal(gray(contents, window=window), gray(named))
        np.testing.assert_array_equal(gray(dicom(NOISY, bits=12, WindowCenter=1, WindowWidth=2, **HOUNSFIELD),
                                           window=window), gray(named))  # fmt: skip


def test_auto_ignores_the_window_of_the_file() -> None:
    windowed = dicom(NOISY, bits=12, WindowCenter=40, WindowWidth=80)
    np.testing.assert_array_equal(gray(windowed, window="auto"), gray(dicom(NOISY, bits=12)))
    dim = np.array([[10, 20], [15, 20]], np.uint8)
    np.testing.assert_array_equal(gray(dicom(dim), window="auto"), [[0, 255], [128, 255]])


def test_a_requested_window_that_leaves_an_image_constant_is_an_error() -> None:
    message = refused(dicom(NOISY, bits=12), window="-600,10")
    assert f"becomes constant in the window -600,10: its values are {NOISY.min()} to {NOISY.max()}" in message
    assert gray(dicom(np.full((4, 4), 7, np.uint16)), window="lung").shape == (4, 4)
    assert gray(dicom(NOISY, bits=12, WindowCenter=-600, WindowWidth=10)).min() == 255


@pytest.mark.parametrize("width", [0, -5])
def test_a_window_of_the_file_without_width_counts_as_none(width: int) -> None:
    np.testing.assert_array_equal(gray(dicom(NOISY, WindowCenter=9, WindowWidth=width)), gray(dicom(NOISY)))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_stretches_no_window(signed: bool, photometric: str) -> None:
    tissue = NOISY.astype(np.int16) + 50
    padded = tissue.copy()
    padded[:4] = -2000 if signed else 0
    padded[4:6] = -1990 if signed else 20
    kind = np.int16 if signed else np.uint16
    ends = {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1980} if signed else {
        "PixelPaddingValue": 0, "PixelPaddingRangeLimit": 40}  # fmt: skip
    dataset = dataset_of(padded.astype(kind), PhotometricInterpretation=photometric)
    for name, value in ends.items():
        dataset.add_new(name, "SS" if signed else "US", value)
    dataset.PixelData = padded.astype(kind).tobytes()
    shown = gray(file_of(dataset, EXPLICIT))
    assert shown[:6].max() == 0
    alone = dicom(tissue[6:].astype(kind), PhotometricInterpretation=photometric)
    np.testing.assert_array_equal(shown[6:], gray(alone))


def test_frames_have_the_rescale_and_window_of_their_functional_groups() -> None:
    frames = np.stack([NOISY, NOISY + 5, NOISY * 2])

    def group(**elements: Any) -> Dataset:
        voi, transformation, item = Dataset(), Dataset(), Dataset()
        for name, value in elements.items():
            setattr(voi if name.startswith("Window") else transformation, name, value)
        if len(voi):
            item.FrameVOILUTSequence = Sequence([voi])
        if len(transformation):
            item.PixelValueTransformationSequence = Sequence([transformation])
        return item

    shared = group(RescaleSlope=2, RescaleIntercept=-100)
    each = [group(WindowCenter=100 * number, WindowWidth=900) for number in range(1, 4)]
    for syntax in (IMPLICIT, EXPLICIT, RLE):
        contents = dicom(
            frames, syntax, frames=True,
            SharedFunctionalGroupsSequence=Sequence([shared]), PerFrameFunctionalGroupsSequence=Sequence(each),
        )  # fmt: skip
        for number in range(3):
            plain = dicom(
                frames[number], RescaleSlope=2, RescaleIntercept=-100, WindowCenter=100 * (number + 1), WindowWidth=900
            )
            np.testing.assert_array_equal(gray(contents, frame=number), gray(plain))


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_each_frame_is_read_on_its_own(syntax: str) -> None:
    frames = np.stack([NOISY, NOISY[::-1], NOISY[:, ::-1]])
    contents = dicom(frames, syntax, frames=True, bits=12)
    for number, frame in enumerate(frames):
        np.testing.assert_array_equal(gray(contents, frame=number), gray(dicom(frame, bits=12)))
    assert "holds 3 frames instead of a single image. Name one, 0 to 2" in refused(contents)
    assert "has no frame 3 (number of frames: 3)" in refused(contents, frame=3)
    assert survey(contents).num_frames == 3


def test_the_header_is_read_once_for_all_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = []
    for number in range(12):
        voi, group = Dataset(), Dataset()
        voi.WindowCenter, voi.WindowWidth = 900, 500 + 100 * number
        group.FrameVOILUTSequence = Sequence([voi])
        groups.append(group)
    frames = np.stack([NOISY] * 12)
    contents = dicom(frames, frames=True, PerFrameFunctionalGroupsSequence=Sequence(groups))
    alone = [gray(contents, frame=number) for number in range(12)]
    reads = 0
    read_once = CountedFile.read

    def counted(file: CountedFile, size: int) -> bytes:
        nonlocal reads
        reads += 1
        return read_once(file, size)

    monkeypatch.setattr(CountedFile, "read", counted)
    file = ImageFile(contents, max_megapixels=1)
    of_each = []
    for number in range(12):
        before = reads
        np.testing.assert_array_equal(file.decode(number, name="scan")[:, :, 0], alone[number])
        of_each.append(reads - before)
    assert max(of_each[1:]) < 20 < of_each[0]


def test_overlays_are_ignored() -> None:
    dataset = dataset_of(NOISY, bits=12)
    dataset.add_new(0x60000010, "US", 24)
    dataset.add_new(0x60000011, "US", 40)
    dataset.add_new(0x60003000, "OW", b"\xff" * 120)
    dataset.PixelData = NOISY.tobytes()
    np.testing.assert_array_equal(gray(file_of(dataset, EXPLICIT)), gray(dicom(NOISY, bits=12)))


@pytest.mark.parametrize(
    ("elements", "kind"),
    [
        ({}, "DICOM without pixels (Basic Text SR)"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.5"}, "DICOM without pixels (RT Plan)"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.9.1.1"}, "DICOM without pixels (12-lead ECG Waveform)"),
        ({"SOPClassUID": "1.2.840.10008.1.3.10"}, "a DICOMDIR, which lists other files"),
        ({"SOPClassUID": "1.2.3.4"}, "DICOM without pixels (of unknown kind)"),
    ],
)  # fmt: skip
def test_files_without_pixels_say_what_they_are(elements: dict[str, Any], kind: str) -> None:
    contents = dicom(None, PatientID="Doe", **elements)
    with pytest.raises(NoPixels, match="holds no image"):
        survey(contents)
    assert f"the file holds no image: it is {kind}." in refused(contents)


def test_a_segmentation_is_no_image() -> None:
    contents = dicom(RAMP.astype(np.uint8), SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4")
    assert "holds no image: it is a segmentation (Segmentation)" in refused(contents)
    assert SR_CLASS


def test_the_patient_is_the_id_or_the_study() -> None:
    assert survey(dicom(NOISY, PatientID="001 ")).patient == survey(dicom(NOISY, PatientID="1")).patient
    for missing in ("", "ANONYMOUS", "unknown"):
        assert survey(dicom(NOISY, PatientID=missing, StudyInstanceUID="1.2.3")).patient == "key of study 1.2.3"


def patient_of(written: bytes, terms: str) -> str | None:
    """The patient of a file whose PatientID has these bytes (at most 24) and whose character sets are ``terms``."""
    contents = dicom(NOISY, PatientID="X" * 24, SpecificCharacterSet=terms.split("\\"), StudyInstanceUID="1.2.3")
    return survey(contents.replace(b"X" * 24, written.ljust(24))).patient


@pytest.mark.parametrize(
    ("patient", "terms", "encoding"),
    [
        ("李12", "GB18030", "gb18030"),
        ("李12", "GBK", "gbk"),
        ("李12", "ISO_IR 192", "utf-8"),
        ("李12", "", "utf-8"),  # undeclared
        ("山田12", "\\ISO 2022 IR 87", "iso2022_jp"),
        ("ﾔﾏﾀﾞ12", "ISO_IR 13", "shift_jis"),
        ("Müller12", "ISO_IR 100", "latin-1"),
        ("Müller12", "", "latin-1"),  # undeclared, and not UTF-8
        ("Müller12", "ISO_IR 192", "latin-1"),  # declared wrongly
        ("Дмитрий12", "ISO_IR 144", "iso8859_5"),
        ("김희중12", "\\ISO 2022 IR 149", "euc_kr"),
        ("P12", "ISO_IR NONSENSE", "ascii"),
    ],
)
def test_one_patient_is_one_whatever_the_character_set(patient: str, terms: str, encoding: str) -> None:
    escape = b"\x1b$)C" if "149" in terms else b""
    assert patient_of(escape + patient.encode(encoding), terms) == f"key of patient {comparison_key(patient)}"


def test_bytes_of_two_patients_that_differ_by_the_case_of_latin_letters_are_two_patients() -> None:
    one, other = "李12".encode("gb18030"), "囝12".encode("gb18030")
    assert one.decode("latin-1").casefold() == other.decode("latin-1").casefold()
    assert patient_of(one, "GB18030") != patient_of(other, "GB18030")


def test_a_slice_has_a_place_in_the_volume_of_its_series() -> None:
    volume = {"SeriesInstanceUID": "1.2.9", "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    places = [
        survey(dicom(NOISY, ImagePositionPatient=[5, 7, z], InstanceNumber=n, **volume)) for n, z in enumerate((30, 10))
    ]
    assert [place.position for place in places] == [(30.0, 0.0), (10.0, 1.0)]
    assert places[0].series == places[1].series is not None
    turned = {**volume, "ImageOrientationPatient": [0, 1, 0, 0, 0, 1]}
    assert survey(dicom(NOISY, ImagePositionPatient=[5, 7, 1], **turned)).series != places[0].series
    assert survey(dicom(NOISY, SeriesInstanceUID="1.2.9")).series is None


def test_burned_in_annotations_are_warned_of() -> None:
    assert survey(dicom(NOISY, BurnedInAnnotation="YES")).warnings == (
        "may show patient data in their pixels (BurnedInAnnotation is YES)",
    )
    assert survey(dicom(NOISY, BurnedInAnnotation="NO")).warnings == ()


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_a_truncated_file_is_refused(syntax: str) -> None:
    contents = dicom(NOISY, syntax, bits=12)
    for length in (140, len(contents) // 2, len(contents) - 40):
        message = refused(contents[:length])
        assert "truncated" in message or "holds no image" in message or "damaged" in message


def test_a_deflated_file_that_grows_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    contents = dicom(np.zeros((1024, 1024), np.uint16), DEFLATED)
    assert len(contents) < 2**13
    monkeypatch.setattr("twinbud.data.formats.dicom_header._MAX_INFLATED_BYTES", 2**20)
    assert "holds more than 1 MiB when it is inflated" in refused(contents)
