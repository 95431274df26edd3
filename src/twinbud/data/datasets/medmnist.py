"""Read a MedMNIST file: arrays of images and labels for train, val and test, one after the other without loading them.

The images become PNG files in the cache, bit by bit as they are in the array, so that they are read, cached, split and
predicted like any other image.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinbud.config.data_spec import DataSpec
from twinbud.core.cache import cache_folder
from twinbud.core.errors import TwinbudError, first_few, first_line, images_place
from twinbud.core.extras import import_extra
from twinbud.core.progress import Progress
from twinbud.data.datasets.image_folder import NewImage, write_once
from twinbud.data.datasets.registry import DatasetEntry
from twinbud.data.index import SPLIT_NAMES, SplitName

_HEADERS: Mapping[tuple[int, int], Callable[[IO[bytes]], tuple[tuple[int, ...], bool, np.dtype[Any]]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def find_file(entry: DatasetEntry, spec: DataSpec, root: Path | None) -> Path | None:
    """Return the ``.npz`` file of a set if it is here already: given, in a given folder, or downloaded before.

    Raises:
        TwinbudError: ``root`` is given, and is neither the file nor a folder with it.
    """
    name = _file_name(spec)
    if root is None:
        return next((folder / name for folder in _download_folders() if (folder / name).is_file()), None)
    found = next((path for path in (root, root / name) if path.is_file()), None)
    if found is None:
        raise TwinbudError(
            f"looked for the file {name}; found {'no such file in the folder' if root.is_dir() else 'nothing'}",
            where=images_place(f"{entry.name}@{spec.variant} --data-root {root}"),
            fix=f"Give the .npz file from {entry.origin}, or the folder that holds it",
        )
    return found


def open_file(entry: DatasetEntry, spec: DataSpec, root: Path | None, progress: Progress) -> Path:
    """Return the ``.npz`` file of a set, downloaded by the package medmnist if there is none.

    Raises:
        TwinbudError: See ``find_file``; the package is not installed, or the file cannot be downloaded.
    """
    return find_file(entry, spec, root) or _download(entry, spec, progress)


def as_folder(entry: DatasetEntry, spec: DataSpec, file: Path, progress: Progress) -> Path:
    """Return a folder of PNG files with the images of a ``.npz`` file, written once.

    Raises:
        TwinbudError: The file is damaged or holds other arrays than the set's.
    """
    size = int(spec.variant or 28)
    where = images_place(f"{entry.name}@{size}: {file}")
    with _explained(where), zipfile.ZipFile(file) as archive:
        counts = {part: _check_part(archive, part, entry, size, where) for part in SPLIT_NAMES}
        return write_once(
            f"{spec.name}-{size}-{_contents(archive)[:16]}",
            partial(_images, archive, entry, where),
            num_images=sum(counts.values()),
            progress=progress,
            label=f"{entry.name}@{size}",
        )


def _file_name(spec: DataSpec) -> str:
    return f"{spec.name}.npz" if spec.variant == "28" else f"{spec.name}_{spec.variant}.npz"


def _download_folders() -> list[Path]:
    """Return where downloads may be: of the package medmnist, and of twinbud."""
    try:
        return [Path.home() / ".medmnist", _own_folder()]
    except RuntimeError:
        return [_own_folder()]


def _own_folder() -> Path:
    return cache_folder() / "datasets" / "medmnist-downloads"


def _download(entry: DatasetEntry, spec: DataSpec, progress: Progress) -> Path:
    name, size = _file_name(spec), int(spec.variant or 28)
    where = images_place(f"{entry.name}@{size}")
    by_hand = f"download {name} from {entry.origin} and give --data-root FOLDER"
    medmnist = import_extra("medmnist", entry.extra, where=where, otherwise=by_hand)
    folder = _own_folder()
    progress.note(f"{entry.name}: downloading {name} to {folder}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        kind = getattr(medmnist, medmnist.INFO[spec.name]["python_class"])
        kind(split="val", download=True, size=size, root=str(folder))  # checks the file's MD5; val is small
    except Exception as error:  # medmnist raises RuntimeError for all that can go wrong
        raise TwinbudError(
            f"the set cannot be downloaded ({first_line(error)})",
            where=where,
            fix=f"Check the network; or {by_hand}",
        ) from error
    return folder / name


@contextmanager
def _explained(where: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError, NotImplementedError) as error:
        raise TwinbudError(
            f"the file is damaged, or no MedMNIST file ({first_line(error)})",
            where=where,
            fix="Download it again",
        ) from error


def _contents(archive: zipfile.ZipFile) -> str:
    """Return a checksum of the arrays, from the checksums in the archive's directory."""
    members = sorted((item.filename, item.file_size, item.CRC) for item in archive.infolist())
    return hashlib.sha256(repr(members).encode()).hexdigest()


@contextmanager
def _opened(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[tuple[int, ...], np.dtype[Any], IO[bytes]]]:
    """Yield shape and type of an array, and the file at its first value; arrays of objects are refused."""
    with archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{name} has version {version} of NumPy's format")
        shape, is_fortran, dtype = _HEADERS[version](file)
        if is_fortran or dtype.hasobject:
            raise ValueError(f"{name} is not a plain array in C order")
        yield shape, dtype, file


def _labels(archive: zipfile.ZipFile, part: SplitName) -> NDArray[Any]:
    with _opened(archive, f"{part}_labels") as (shape, dtype, file):
        return np.frombuffer(file.read(), dtype=dtype).reshape(shape)


def _check_part(archive: zipfile.ZipFile, part: SplitName, entry: DatasetEntry, size: int, where: str) -> int:
    """Return the number of images of a part.

    Raises:
        TwinbudError: The arrays are not those of the set.
    """
    labels = _labels(archive, part)
    pixels = (size, size) if entry.num_channels == 1 else (size, size, 3)
    with _opened(archive, f"{part}_images") as (shape, dtype, _):
        expected = (len(labels), *pixels)
        if shape != expected or dtype != np.uint8:
            raise TwinbudError(
                f"{part}_images: looked for uint8 {expected}, found {dtype} {shape}",
                where=where,
                fix=f"Give the file of {entry.name} at {size} pixels",
            )
    if labels.shape != (len(labels), 1) or not np.issubdtype(labels.dtype, np.integer):
        raise TwinbudError(
            f"{part}_labels: looked for whole numbers ({len(labels)}, 1), found {labels.dtype} {labels.shape}",
            where=where,
            fix=f"Give the file of {entry.name}",
        )
    if unknown := sorted(set(labels.ravel().tolist()) - set(range(len(entry.classes)))):
        raise TwinbudError(
            f"{part}_labels: the set has classes 0 to {len(entry.classes) - 1}, found {first_few(unknown)}",
            where=where,
            fix=f"Give the file of {entry.name}",
        )
    return len(labels)


def _images(archive: zipfile.ZipFile, entry: DatasetEntry, where: str) -> Iterator[NewImage]:
    with _explained(where):
        for part in SPLIT_NAMES:
            labels = _labels(archive, part).ravel().tolist()
            with _opened(archive, f"{part}_images") as (shape, _, file):
                num_bytes = int(np.prod(shape[1:]))
                for number, label in enumerate(labels):
                    contents = file.read(num_bytes)
                    if len(contents) != num_bytes:
                        raise EOFError(f"{part}_images ends after {number} images")
                    pixels = np.frombuffer(contents, dtype=np.uint8).reshape(shape[1:])
                    path = f"{part}/{number:06d}.png"
                    yield NewImage(path=path, encode=partial(_png, pixels), label=entry.classes[label], split=part)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
