r"""Compare twinbud's reading of DICOM files with pydicom's and DCMTK's, file by file.

    python benchmarks/dicom_oracle.py FOLDER

Of each file below FOLDER the first frame is read three ways: by twinbud; by pydicom (``pixel_array``,
``apply_modality_lut``, ``apply_voi_lut``, with whichever decoder it finds: pylibjpeg decodes all) scaled to 8 bits; and
by DCMTK's dcm2pnm, dcmj2pnm or dcml2pnm, which must be on the PATH, without overlays. The table tells the largest
difference of the stored values from pydicom's, and of the 8-bit values from both. Nothing of the header but names of
the standard is printed.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from twinbud.core.errors import TwinbudError
from twinbud.data.formats.decoding import without_warnings
from twinbud.data.formats.dicom_header import read_header, uid_name
from twinbud.data.formats.dicom_layout import read_layout
from twinbud.data.formats.dicom_pixels import StoredFrame, read_frame
from twinbud.data.read_image import read_image

TOOLS = ("dcm2pnm", "dcmj2pnm", "dcml2pnm")


def main() -> None:
    """Print one row a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    print("| file | syntax | pixels | stored values, pydicom | 8 bits, pydicom | 8 bits, DCMTK |")
    print("|---|---|---|---|---|---|")
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            print(f"| {file.relative_to(folder)} | {' | '.join(compare(file))} |", flush=True)


def compare(file: Path) -> tuple[str, ...]:
    """Return the columns of a file behind its name."""
    try:
        image, stored, header = _read(file)
    except TwinbudError as error:
        return ("", "", "", str(error).partition(": ")[2].partition(".")[0], "")
    layout = read_layout(header)
    pixels = f"{layout.columns}×{layout.rows} {layout.photometric} {layout.bits_stored}"
    try:
        raw, shown = _by_pydicom(file, stored)
        against_pydicom = (_difference(stored.values, raw), _difference(image, shown))
    except Exception as error:
        against_pydicom = (f"pydicom: {type(error).__name__}", "")
    return uid_name(header.transfer_syntax) or "", pixels, *against_pydicom, _against_dcmtk(file, image)


def _read(file: Path) -> tuple[np.ndarray, StoredFrame, Any]:
    try:
        image = read_image(file)
    except TwinbudError as error:
        if "instead of a single image" not in str(error):
            raise
        image = read_image(file, frame=0)
    body = io.BytesIO(file.read_bytes())
    with without_warnings():
        header = read_header(body)
        place = header.pixel_place(body)
        stored = read_frame(header, read_layout(header), place, frame=0, num_frames=header.num_frames)
    return image, stored, header


def _by_pydicom(file: Path, stored: StoredFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return pydicom's stored values, and what its functions make of them in 8 bits by the rules of docs/dicom.md."""
    import pydicom
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut, convert_color_space
    from pydicom.pixels.utils import pixel_array
    from pydicom.uid import ImplicitVRLittleEndian

    dataset = pydicom.dcmread(file, force=True)
    if not hasattr(dataset.file_meta, "TransferSyntaxUID"):
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    raw = pixel_array(dataset, index=0, raw=True)
    if stored.photometric == "PALETTE COLOR":
        shown = apply_color_lut(raw, dataset)
        return raw, (shown >> 8).astype(np.uint8) if shown.max() > 255 else shown.astype(np.uint8)
    if stored.photometric == "YBR_FULL":
        return raw, convert_color_space(raw, "YBR_FULL", "RGB")
    if stored.photometric == "RGB":
        return raw, raw if raw.dtype == np.uint8 else _scaled(raw.astype(float), raw.min(), raw.max())
    values = apply_modality_lut(raw, dataset)
    windowed = apply_voi_lut(values, dataset, index=0)
    if "VOILUTSequence" in dataset:
        shown = _scaled(windowed, 0, (1 << dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1)
    elif "WindowWidth" in dataset:
        low, high = _output_range(dataset)
        shown = _scaled(windowed, low, high)
    else:
        shown = _scaled(values, values.min(), values.max()) if stored.bits > 8 else _scaled(values, 0, 255)
    return raw, 255 - shown if stored.photometric == "MONOCHROME1" else shown


def _output_range(dataset: Any) -> tuple[float, float]:
    """Return the range that pydicom's ``apply_windowing`` spreads a window over."""
    low, high = (-(1 << (dataset.BitsStored - 1)), (1 << (dataset.BitsStored - 1)) - 1)
    if not dataset.PixelRepresentation:
        low, high = 0, (1 << dataset.BitsStored) - 1
    if "ModalityLUTSequence" in dataset:
        return 0, (1 << dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    return low * slope + intercept, high * slope + intercept


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    scale = 255 / (float(high) - float(low)) if high > low else 0.0
    return np.rint(np.clip((values.astype(np.float64) - low) * scale, 0, 255)).astype(np.uint8)


def _against_dcmtk(file: Path, image: np.ndarray) -> str:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "image.pnm"
        for options in (["+Wl", "1"], ["+Wi", "1"], ["+Wm"]):
            for tool in TOOLS:
                words = [tool, *options, "-O", "+opb", "+F", "1", str(file), str(output)]
                done = subprocess.run(words, capture_output=True, check=False)
                if done.returncode == 0 and output.exists():
                    other = np.asarray(Image.open(output).convert("RGB"))
                    return f"{_difference(image, other)} ({' '.join(options)})"
    return "not decoded"


def _difference(ours: np.ndarray, other: np.ndarray) -> str:
    if other.ndim == 2 and ours.ndim == 3:
        other = np.repeat(other[:, :, None], 3, axis=2)
    if ours.shape != other.shape:
        return f"shape {other.shape}"
    gaps = np.abs(ours.astype(np.int64) - other.astype(np.int64))
    share = (gaps > 1).mean()
    return "equal" if not gaps.any() else f"at most {gaps.max()}" + (f", above 1 in {share:.1%}" if share else "")


if __name__ == "__main__":
    main()
