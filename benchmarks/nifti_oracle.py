r"""Compare twinbud's reading of NIfTI files with nibabel's, file by file, and time it.

    python benchmarks/nifti_oracle.py FOLDER

Of each ``.nii`` and ``.nii.gz`` file below FOLDER, every slice of every volume along every axis is compared with
nibabel's closest canonical image, scaled (``get_fdata``), put into the range that numpy finds, rounded to 8 bits and
shown by the radiological convention. The table tells the size, type and orientation that nibabel finds, the range, the
number of slices, how many of them are equal bit for bit, the largest difference, and the time for all axial slices of
a volume: with the volume opened once, and with the file opened again for each slice. Times depend on the machine and on
what else it does. No text of a header is printed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import get_args

import nibabel
import numpy as np

from twinbud.config.data_config import DataConfig
from twinbud.config.reading import Axis, Plane
from twinbud.core.errors import TwinbudError
from twinbud.data.formats.decoding import ImageFile
from twinbud.data.formats.nifti import NiftiReader

_LIMIT = DataConfig().max_megapixels
_PLACES: dict[Axis, int] = {"sagittal": 0, "coronal": 1, "axial": 2}


def main() -> None:
    """Print one row a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    print("| file | voxels | type | axes | range | equal slices | largest difference | ms a slice, once / again |")
    print("|---|---|---|---|---|---|---|---|")
    for file in sorted((*folder.rglob("*.nii"), *folder.rglob("*.nii.gz"))):
        print(f"| {file.relative_to(folder)} | {' | '.join(_compare(file))} |", flush=True)


def _compare(file: Path) -> tuple[str, ...]:
    """Return the columns of a file behind its name."""
    contents = file.read_bytes()
    image = nibabel.load(file)
    assert isinstance(image, nibabel.Nifti1Image)
    canonical = nibabel.as_closest_canonical(image)
    values = canonical.get_fdata().reshape(*canonical.shape[:3], -1)
    num_equal, num_slices, largest, ranges = 0, 0, 0, []
    try:
        for volume in range(values.shape[3]):
            low, high = _expected_range(values[..., volume])
            ranges.append(f"{low:g} to {high:g}")
            clipped = np.clip(np.nan_to_num(values[..., volume], nan=low), low, high)
            shown = np.rint((clipped - low) * (255 / (high - low)))
            for axis in get_args(Axis):
                found = _slices(contents, axis, volume)
                expected = np.moveaxis(shown, _PLACES[axis], 0).swapaxes(1, 2)[:, ::-1, ::-1]
                differences = np.abs(found.astype(int) - expected[..., None]).max((1, 2, 3))
                num_slices, num_equal = num_slices + len(found), num_equal + int((differences == 0).sum())
                largest = max(largest, int(differences.max()))
    except TwinbudError as error:
        return "", "", "", "", "", "", str(error)
    size, axes = "×".join(map(str, image.shape)), "".join(map(str, nibabel.aff2axcodes(image.affine)))
    times = f"{_seconds(contents, again=False) * 1e3:.2f} / {_seconds(contents, again=True) * 1e3:.2f}"
    kind = str(np.dtype(image.get_data_dtype()).newbyteorder(image.header.endianness).str)
    return size, kind, axes, ", ".join(ranges), f"{num_equal} of {num_slices}", str(largest), times


def _expected_range(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    inside = finite[finite != 0]
    low, high = np.quantile(inside, 0.005, method="lower"), np.quantile(inside, 0.995, method="higher")
    return (float(low), float(high)) if low < high else (float(finite.min()), float(finite.max()))


def _slices(contents: bytes, axis: Axis, volume: int) -> np.ndarray:
    plane = Plane(axis, volume)
    file = ImageFile(contents, max_megapixels=_LIMIT, plane=plane)
    count = NiftiReader(plane).describe(contents).num_frames
    return np.stack([file.decode(frame, name="file") for frame in range(count)])


def _seconds(contents: bytes, *, again: bool) -> float:
    """Return the processor time for an axial slice of the first volume, on average over all of them."""
    plane = Plane("axial", 0)
    count = NiftiReader(plane).describe(contents).num_frames
    start = time.process_time()
    file = ImageFile(contents, max_megapixels=_LIMIT, plane=plane)
    for frame in range(count):
        file = ImageFile(contents, max_megapixels=_LIMIT, plane=plane) if again else file
        file.decode(frame, name="file")
    return (time.process_time() - start) / count


if __name__ == "__main__":
    main()
