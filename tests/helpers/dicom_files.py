"""DICOM files of generated pixels, in every transfer syntax."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import RLELosslessEncoder
from pydicom.uid import UID, generate_uid

IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".1.99", ".2"))
RLE, JPEG, JPEG_12 = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS, JPEG_LOSSLESS_1 = "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"
JPEG_LS, JPEG_LS_LOSSY = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"
JPEG_2000, JPEG_2000_LOSSY, HTJ2K = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.201"
UNCOMPRESSED = (IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN)
LOSSLESS = (*UNCOMPRESSED, RLE, JPEG_LOSSLESS, JPEG_LOSSLESS_1, JPEG_LS, JPEG_2000, HTJ2K)
CT_CLASS, SR_CLASS = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.88.11"

Encode = Callable[[np.ndarray, int], bytes | bytearray]


def _jpeg_2000(frame: np.ndarray, bits: int) -> bytes | bytearray:
    return imagecodecs.jpeg2k_encode(frame, level=0, reversible=True, codecformat="j2k", bitspersample=bits)


def _rle(frame: np.ndarray, bits: int) -> bytes | bytearray:
    samples = 1 if frame.ndim == 2 else 3
    values = frame.view(f"u{frame.dtype.itemsize}")
    return RLELosslessEncoder.encode(
        values.tobytes(), rows=frame.shape[0], columns=frame.shape[1], samples_per_pixel=samples, number_of_frames=1,
        bits_allocated=8 * frame.dtype.itemsize, bits_stored=bits, pixel_representation=0, planar_configuration=0,
        photometric_interpretation="MONOCHROME2" if samples == 1 else "RGB", encoding_plugin="pydicom",
    )  # fmt: skip


ENCODERS: dict[str, Encode] = {
    RLE: _rle,
    JPEG: lambda frame, bits: imagecodecs.jpeg8_encode(frame, level=90),
    JPEG_12: lambda frame, bits: imagecodecs.jpeg8_encode(frame, level=95, bitspersample=12),
    JPEG_LOSSLESS: lambda frame, bits: imagecodecs.jpeg8_encode(frame, lossless=True, predictor=4, bitspersample=bits),
    JPEG_LOSSLESS_1: lambda frame, bits: imagecodecs.jpeg8_encode(
        frame, lossless=True, predictor=1, bitspersample=bits
    ),
    JPEG_LS: lambda frame, bits: imagecodecs.jpegls_encode(frame),
    JPEG_LS_LOSSY: lambda frame, bits: imagecodecs.jpegls_encode(frame, level=2),
    JPEG_2000: _jpeg_2000,
    JPEG_2000_LOSSY: lambda frame, bits: imagecodecs.jpeg2k_encode(
        frame, level=90, codecformat="j2k", bitspersample=bits
    ),
    HTJ2K: lambda frame, bits: imagecodecs.htj2k_encode(frame, reversible=True),
}


def dataset_of(pixels: np.ndarray, *, bits: int | None = None, frames: bool = False, **elements: Any) -> Dataset:
    """The elements of an image: integers (H, W) or (H, W, 3), with a first axis before them if it has ``frames``."""
    one = pixels[0] if frames else pixels
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CT_CLASS, generate_uid()
    dataset.PatientID, dataset.StudyInstanceUID = "P1", generate_uid()
    dataset.Rows, dataset.Columns = one.shape[:2]
    dataset.SamplesPerPixel = 1 if one.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if one.ndim == 2 else "RGB"
    if one.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    if frames:
        dataset.NumberOfFrames = len(pixels)
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def dicom(
    pixels: np.ndarray | None = None,
    syntax: str = EXPLICIT,
    *,
    bits: int | None = None,
    frames: bool = False,
    preamble: bool = True,
    **elements: Any,
) -> bytes:
    """A DICOM file; see ``dataset_of``. Without pixels it holds ``elements`` alone."""
    dataset = Dataset() if pixels is None else dataset_of(pixels, bits=bits, frames=frames, **elements)
    if pixels is None:
        dataset.SOPClassUID, dataset.SOPInstanceUID = SR_CLASS, generate_uid()
        for name, value in elements.items():
            setattr(dataset, name, value)
    elif "PixelData" not in dataset:
        set_pixels(dataset, pixels, syntax, frames=frames)
    return file_of(dataset, syntax, preamble=preamble)


def set_pixels(dataset: Dataset, pixels: np.ndarray, syntax: str, *, frames: bool = False) -> None:
    """Encode pixels into a dataset."""
    if syntax in UNCOMPRESSED:
        order = ">" if syntax == BIG_ENDIAN else "<"
        data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
        dataset.PixelData = data + b"\0" * (len(data) % 2)
        dataset["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
    else:
        encode, bits = ENCODERS[syntax], dataset.BitsStored
        encoded = [bytes(encode(_unsigned(frame, dataset), bits)) for frame in _frames(pixels, frames)]
        dataset.PixelData = encapsulate(encoded)
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True


def file_of(dataset: Dataset, syntax: str, *, preamble: bool = True) -> bytes:
    """Write a dataset in a transfer syntax, with or without preamble and file meta information."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(syntax)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd values, which tests want
        implicit, little = syntax == IMPLICIT, syntax != BIG_ENDIAN
        if preamble:
            dataset.set_original_encoding(implicit, little, "latin-1")
            file = FileDataset(None, dataset, file_meta=meta, preamble=b"\0" * 128)  # type: ignore[arg-type]
            file.set_original_encoding(implicit, little, "latin-1")
            file.save_as(buffer, enforce_file_format=True)
        else:
            dataset.save_as(buffer, implicit_vr=implicit, little_endian=little)
    return buffer.getvalue()


def _frames(pixels: np.ndarray, frames: bool) -> list[np.ndarray]:
    return list(pixels) if frames else [pixels]


def _unsigned(frame: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Values as encoders take them: two's complements of the bits that are stored."""
    if frame.dtype.kind == "u":
        return frame
    unsigned = frame.view(f"u{frame.dtype.itemsize}")
    return unsigned & unsigned.dtype.type((1 << dataset.BitsStored) - 1)
