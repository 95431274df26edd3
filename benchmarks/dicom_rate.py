r"""Measure how many DICOM images a second twinbud decodes on one core, against a plain loop over pydicom.

    python benchmarks/dicom_rate.py [--count 100] [FILE ...]

Without files, a CT slice of 512 × 512 pixels of 12 bits is generated, uncompressed, with JPEG-LS and with JPEG 2000.
The plain loop is what a tutorial has: ``dcmread``, ``pixel_array``, ``apply_modality_lut``, ``apply_voi_lut``, and
scaling to 8 bits. Files of both come from memory. The second start reads the file from the disk, compares its checksum,
and takes the image, of ``--image-size`` pixels, from the pixel cache. Times are of the process, which other work on the
machine does not change much.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from twinbud.data.formats.decoding import decode, without_warnings
from twinbud.data.image_loading import load_file
from twinbud.data.index import ImageRef
from twinbud.data.pixel_cache import PixelCache

SYNTAXES = {
    "uncompressed": (uid.ExplicitVRLittleEndian, None),
    "JPEG-LS": (uid.JPEGLSLossless, imagecodecs.jpegls_encode),
    "JPEG 2000": (
        uid.JPEG2000Lossless,
        lambda pixels: imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k"),
    ),
}


def main() -> None:
    """Print one row a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--image-size", type=int, default=112)
    wanted = parser.parse_args()
    files = {str(file): file.read_bytes() for file in wanted.files}
    files = files or {name: generated(name) for name in SYNTAXES}
    names = ("twinbud", "pydicom loop", "second start")
    print("| file | MiB of pixels |", " | ".join(f"{name}, images/s | MiB/s" for name in names), "|")
    print("|---" * (2 + 2 * len(names)) + "|")
    for name, contents in files.items():
        dataset = pydicom.dcmread(io.BytesIO(contents))
        mib = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.BitsAllocated / 8 / 2**20
        with from_cache(contents, wanted.image_size) as read_again:
            rates = [rate(read, contents, wanted.count) for read in (by_twinbud, by_pydicom, read_again)]
        columns = " | ".join(f"{each:.1f} | {each * mib:.1f}" for each in rates)
        print(f"| {name} | {mib:.2f} | {columns} |", flush=True)


def rate(read: Callable[[bytes], object], contents: bytes, count: int) -> float:
    """Return images a second of processor time, after one that does not count."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read(contents)
        start = time.process_time()
        for _ in range(count):
            read(contents)
        return count / (time.process_time() - start)


def by_twinbud(contents: bytes) -> np.ndarray:
    """Decode as a run does."""
    with without_warnings():
        return decode(contents, name="scan", max_megapixels=36)


@contextmanager
def from_cache(contents: bytes, image_size: int) -> Iterator[Callable[[bytes], object]]:
    """Yield what loads a file as the second start of a run does; its first call fills the cache."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.dcm"
        path.write_bytes(contents)
        cache = PixelCache(Path(folder) / "pixels", image_size)

        def read(_: bytes) -> object:
            with without_warnings():
                return load_file([ImageRef(file=path)], ["scan"], cache=cache, image_size=image_size, max_megapixels=36)

        yield read


def by_pydicom(contents: bytes) -> np.ndarray:
    """Decode as a tutorial does."""
    dataset = pydicom.dcmread(io.BytesIO(contents))
    values = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(np.float64)
    values = (values - values.min()) / max(np.ptp(values), 1) * 255
    return np.repeat(np.rint(values).astype(np.uint8)[:, :, None], 3, axis=2)


def generated(name: str) -> bytes:
    """Return a CT slice of noise in circles."""
    syntax, encode = SYNTAXES[name]
    y, x = np.mgrid[-256:256, -256:256]
    generator = np.random.default_rng(0)
    pixels = (1000 + 900 * np.cos(np.hypot(x, y) / 20) + generator.normal(0, 20, x.shape)).astype(np.uint16)
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.CTImageStorage, uid.generate_uid()
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.PhotometricInterpretation = (
        512,
        512,
        1,
        "MONOCHROME2",
    )
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.WindowCenter, dataset.WindowWidth = 40, 400
    dataset.PixelData = pixels.tobytes() if encode is None else encapsulate([encode(pixels)])
    dataset["PixelData"].VR = "OW" if encode is None else "OB"
    dataset["PixelData"].is_undefined_length = encode is not None
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    buffer = io.BytesIO()
    FileDataset(None, dataset, file_meta=meta, preamble=b"\0" * 128).save_as(buffer, enforce_file_format=True)  # type: ignore[arg-type]
    return buffer.getvalue()


if __name__ == "__main__":
    main()
