"""Hostile and damaged DICOM files: refused by name, in bounded time and memory, and without a word of what they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from helpers.dicom_files import IMPLICIT, JPEG_2000, JPEG_LOSSLESS, JPEG_LS, RLE, dicom
from helpers.dicom_mutations import dicom_mutation
from helpers.limits import decode_mutations, judge
from twinbud.data.formats.base import BrokenImageError
from twinbud.data.formats.decoding import decode, without_warnings

PIXELS = np.add.outer(np.arange(24), np.arange(40)).astype(np.uint16)


def refused(contents: bytes) -> str:
    with pytest.raises(BrokenImageError) as error, without_warnings():
        decode(contents, name="scan", max_megapixels=36)
    assert "CANARY" not in str(error.value)
    return str(error.value)


def before_pixels(inserted: bytes) -> bytes:
    """A sound file with explicit VR and something inserted before the elements of its pixels."""
    contents = dicom(PIXELS)
    place = contents.index(b"\x28\0\x02\0")
    return contents[:place] + inserted + contents[place:]


SEQUENCE = b"\x00\x52\x30\x92SQ\0\0"
UNDEFINED = b"\xff\xff\xff\xff"
ITEM = b"\xfe\xff\x00\xe0"


@pytest.mark.parametrize(
    ("inserted", "problem"),
    [
        ((SEQUENCE + UNDEFINED + ITEM + UNDEFINED) * 100_000, "is nested too deeply"),
        (b"\x09\0\x10\x10LO\0\0" * 9_000, "too long or too deeply nested"),
        (SEQUENCE + UNDEFINED + (ITEM + b"\0\0\0\0") * 9_000, "damaged or truncated"),
        (SEQUENCE + b"\0\0\x01\0" + (ITEM + b"\0\0\0\0") * 8_192, "too long or too deeply nested"),
        (b"\x10\0\x20\0UN\0\0\0\0\0\x02" + b"CANARY  " * 2**22, "too long or too deeply nested"),
        (b"\x10\0\x20\0UN\0\0\xf0\xff\xff\xff" + b"CANARY  ", "is truncated: it ends before its pixels"),
        (b"\x09\0\x10\x10OB\0\0\xff\xff\xff\xff" + b"CANARY  " * 1000, "is truncated: it ends before its pixels"),
    ],
    ids=["nested", "elements", "items", "items of a known length", "a huge id", "a false length", "no delimiter"],
)
def test_a_header_without_end_is_refused(inserted: bytes, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinbud.data.formats.dicom_elements._MAX_READS", 8_000)
    assert problem in refused(before_pixels(inserted))


def test_deep_nesting_is_named_from_any_depth_of_the_caller() -> None:
    contents = before_pixels((SEQUENCE + UNDEFINED + ITEM + UNDEFINED) * 10_000)

    def refused_below(depth: int) -> str:
        return refused_below(depth - 1) if depth else refused(contents)

    for depth in range(8):
        assert "is nested too deeply" in refused_below(depth)


@pytest.mark.parametrize(
    ("elements", "problem"),
    [
        ({"Rows": 0}, "has 40×0 pixels by its header"),
        ({"Rows": 65535, "Columns": 65535}, "has 65535×65535 pixels (4294.8 megapixels; the limit is 36)"),
        ({"Rows": 5000, "Columns": 7000}, "is truncated: it announces 7000×5000 pixels and has 1920 bytes"),
        ({"NumberOfFrames": 60_000}, "is truncated: it announces 60000 frames of 40×24 pixels and has 1920 bytes"),
        ({"NumberOfFrames": 2_000_000_000}, "announces 2e+09 frames (the limit is 65,536)"),
        ({"BitsStored": 17}, "has pixels of 16 bits, 17 of them stored, which is not supported"),
        ({"BitsAllocated": 64}, "has pixels of 64 bits, 16 of them stored, which is not supported"),
        ({"HighBit": 3}, "has its highest bit at 3, outside its 16 bits"),
        ({"SamplesPerPixel": 4}, "has pixels of 4 samples with MONOCHROME2, which is not supported"),
        ({"PhotometricInterpretation": "CANARY"}, "has pixels of 1 samples with another interpretation"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "has a lookup table without a usable descriptor"),
    ],
    ids=str,
)
def test_numbers_that_cannot_be_are_refused_by_name(elements: dict[str, Any], problem: str) -> None:
    assert problem in refused(dicom(PIXELS, **elements))


@pytest.mark.parametrize("syntax", [JPEG_LOSSLESS, JPEG_LS, JPEG_2000])
def test_a_compressed_frame_of_another_size_than_the_header_says_is_refused_undecoded(
    syntax: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> np.ndarray:
        raise AssertionError("decoded")

    contents = dicom(PIXELS, syntax, Rows=12)
    monkeypatch.setattr("twinbud.data.formats.dicom_codecs._decode", never)
    problem = "has 40×12 pixels of 1 samples by its DICOM header, and 40×24 of 1 by that of the compressed frame"
    assert problem in refused(contents)


def test_run_lengths_that_give_more_than_the_frame_holds_are_refused() -> None:
    contents = dicom(PIXELS, RLE)
    place = contents.rindex(b"\xfe\xff\xdd\xe0")
    header = np.array([1, 64] + [0] * 14, "<u4").tobytes()
    bomb = header + bytes([129, 7]) * 50_000
    start = contents.rindex(b"\xe0\x7f\x10\0") + 12
    item = ITEM + len(bomb).to_bytes(4, "little") + bomb
    assert "damaged or truncated" in refused(contents[:start] + ITEM + b"\0\0\0\0" + item + contents[place:])


def test_fragments_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    contents = dicom(PIXELS, RLE)
    start = contents.rindex(b"\xe0\x7f\x10\0") + 12
    monkeypatch.setattr("twinbud.data.formats.dicom_pixels._MAX_FRAGMENTS", 1_000)
    assert "damaged or truncated" in refused(contents[:start] + (ITEM + b"\x02\0\0\0ab") * 3_000)


def test_an_unsupported_transfer_syntax_is_named_if_the_standard_knows_it() -> None:
    contents = dicom(PIXELS, RLE)
    for uid, name in ((b"1.2.840.10008.1.2.4.100", "MPEG2 Main Profile / Main Level"), (b"1.2.CANARY", "")):
        old = b"UI\x14\x001.2.840.10008.1.2.5\0"
        assert old in contents
        uid += b"\0" * (len(uid) % 2)
        other = contents.replace(old, b"UI" + len(uid).to_bytes(2, "little") + uid, 1)
        assert "has a transfer syntax that is not supported" in refused(other)
        assert name in refused(other)


def test_uncompressed_pixels_in_the_transfer_syntax_of_a_manufacturer_are_not_called_compressed() -> None:
    contents = dicom(PIXELS).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.113619.5.2\0\0", 1)
    assert "the file has a transfer syntax that is not supported." in refused(contents)


def test_a_file_of_several_frames_that_cannot_be_read_says_why_and_not_that_a_frame_must_be_named() -> None:
    frames = np.stack([PIXELS] * 3)
    assert "is truncated: it announces 3 frames" in refused(dicom(frames, frames=True)[:-10])
    mpeg = dicom(frames, JPEG_LOSSLESS, frames=True).replace(b"1.2.840.10008.1.2.4.57", b"1.2.840.10008.1.2.4.98", 1)
    assert "has a transfer syntax that is not supported" in refused(mpeg)


def test_pixels_must_be_stored_as_the_transfer_syntax_says() -> None:
    contents = dicom(PIXELS, IMPLICIT)
    false = contents.replace(b"UI\x12\x001.2.840.10008.1.2\0", b"UI\x14\x001.2.840.10008.1.2.5\0", 1)
    assert false != contents
    assert "has pixels that are compressed by its transfer syntax and stored in one piece" in refused(false)


def test_a_value_that_is_no_number_does_not_reach_the_error() -> None:
    for name in (b"\x28\0\x50\x10DS", b"\x28\0\x52\x10DS", b"\x28\0\x08\0IS"):
        with without_warnings():
            image = decode(before_pixels(name + b"\x06\0CANARY"), name="scan", max_megapixels=1)
        assert image.max() == 255
    assert refused(before_pixels(b"\x28\0\x00\x30SQ\0\0\x08\0\0\0CANARY  "))


def decoded_or_refused(seeds: range, damage: Callable[..., object]) -> None:
    counts, failures = decode_mutations(seeds, damage)  # type: ignore[arg-type]
    assert failures == []
    assert counts["decoded"] > 20
    assert counts["refused"] > 100


def test_300_damaged_files_are_decoded_or_refused_within_5_seconds_and_512_mib() -> None:
    decoded_or_refused(range(300), dicom_mutation)


def test_the_judge_of_damaged_files_takes_sound_ones() -> None:
    assert judge(dicom(PIXELS), "scan.dcm") == "decoded"
