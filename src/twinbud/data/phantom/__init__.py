"""The embedded phantom set: generated axial head slices in four classes.

The classes are those of the public brain-tumor MRI set; the slices imitate T1-weighted images after contrast agent.
Only the lesion depends on the class. A patient's head, the level of a slice, its pose, contrast, blur and noise come
from random streams that do not depend on the label, so that no global statistic predicts the class.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinbud.core.cache import cache_folder, delete_abandoned, reason_of, temporary_folder, warn_of_cache
from twinbud.core.errors import TwinbudError, explained_writes, unknown_choice
from twinbud.core.rng import numpy_stream
from twinbud.data.phantom.anatomy import AIR, Canvas, draw_anatomy, skin_depth
from twinbud.data.phantom.lesions import draw_lesion, mass_effect, paint_lesion
from twinbud.data.phantom.parts import paint_head
from twinbud.data.phantom.scanner import acquire, draw_acquisition, head_coordinates

CLASSES: tuple[str, ...] = ("glioma", "meningioma", "notumor", "pituitary")
"""The class names, sorted."""

PHANTOM_VERSION = 1
"""Increased whenever a pixel of the set changes, so that a folder cached by an older generator is not used."""


def phantom_slice(patient: int, slice_index: int, label: str, *, seed: int = 0, size: int = 224) -> NDArray[np.uint8]:
    """Generate one slice; the same arguments give the same pixels.

    The slices of a patient share the head and the tumor; they differ in level, pose, contrast and noise. Another label
    gives the same head, acquired in the same way, with another tumor or none.

    Args:
        patient: Number of the patient, from 0.
        slice_index: Number of the slice of this patient, from 0.
        label: One of ``CLASSES``.
        seed: Seed of the whole set.
        size: Side of the image in pixels.

    Returns:
        uint8 (size, size).

    Raises:
        TwinbudError: ``label`` is not one of ``CLASSES``.
    """
    if label not in CLASSES:
        raise unknown_choice("phantom label", label, CLASSES)
    anatomy = draw_anatomy(numpy_stream("phantom", seed, patient, "anatomy"))
    taken = numpy_stream("phantom", seed, patient, "slice", slice_index)
    acquisition = draw_acquisition(taken)
    level = abs(anatomy.level + acquisition.level_shift)
    level = level if level <= 1 else 2 - level
    x, y = head_coordinates(acquisition, size)
    image = np.full((size, size), AIR, dtype=np.float32)
    # Only the bounding box of the head is painted; the rest is air.
    head = skin_depth(anatomy, x, y) > -0.05
    rows, columns = np.flatnonzero(head.any(axis=1)), np.flatnonzero(head.any(axis=0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    x, y, pixel = x[box], y[box], 1 / (acquisition.scale * size)
    if label == "notumor":
        canvas = Canvas(anatomy, x, y, level, pixel)
        paint_head(canvas)
    else:
        lesion = draw_lesion(label, anatomy, numpy_stream("phantom", seed, patient, "lesion", label))
        canvas = Canvas(anatomy, *mass_effect(lesion, anatomy, x, y), level, pixel)
        paint_head(canvas)
        paint_lesion(canvas, lesion, x, y)
    image[box] = canvas.image
    return acquire(image, acquisition, taken)


def phantom_folder(
    *,
    patients_per_class: int = 100,
    slices_per_patient: int = 2,
    seed: int = 0,
    size: int = 224,
    root: Path | None = None,
) -> Path:
    """Write the set if it is not there yet and return its folder: ``CLASS/NAME.png`` and ``labels.csv``.

    ``labels.csv`` has the columns image_path (relative to the folder), label and patient_id. A complete folder is
    reused; an incomplete one is written again. The set is written to a temporary folder that is then renamed, so that
    two processes can call this at the same time.

    Args:
        patients_per_class: Number of patients of each class.
        slices_per_patient: Number of slices of each patient.
        seed: Seed of the set.
        size: Side of the images in pixels, at least 32.
        root: Folder of the set; None: below the cache folder, with a name that encodes the arguments.

    Raises:
        TwinbudError: A count is below 1, ``root`` holds files of another kind, or it cannot be written.
    """
    for name, value in (
        ("patients_per_class", patients_per_class),
        ("slices_per_patient", slices_per_patient),
    ):
        if value < 1:
            raise TwinbudError(f"{value} is below 1", where=f"phantom {name}", fix="Give a whole number of at least 1")
    if size < 32:
        raise TwinbudError(f"{size} is below 32 pixels", where="phantom size", fix="Give at least 32")
    prefix = f"v{PHANTOM_VERSION}-seed{seed}-{size}px"
    name = f"{prefix}-{patients_per_class}x{slices_per_patient}"
    rows = [
        # The number of a patient does not depend on the size of the set: smaller sets are subsets of larger ones.
        Row(label, patient * len(CLASSES) + CLASSES.index(label), slice_index, prefix)
        for label, patient, slice_index in product(CLASSES, range(patients_per_class), range(slices_per_patient))
    ]
    if root is not None:
        with explained_writes(root, "root"):
            return _complete_folder(Path(root), rows, seed=seed, size=size)
    try:
        delete_abandoned(cache_folder() / "phantom", f".{name}-*")
        return _complete_folder(cache_folder() / "phantom" / name, rows, seed=seed, size=size)
    except (OSError, TwinbudError) as error:
        warn_of_cache(f"the phantom set is not kept in {cache_folder() / 'phantom'} ({reason_of(error)})")
    with explained_writes(temporary_folder(), "TMPDIR"):
        return _complete_folder(temporary_folder() / "phantom" / name, rows, seed=seed, size=size)


def _complete_folder(folder: Path, rows: list[Row], *, seed: int, size: int) -> Path:
    """Return ``folder`` with the set in it, built if it is not complete.

    Raises:
        OSError: It cannot be written.
        TwinbudError: It holds files that are not of a phantom set.
    """
    if _is_complete(folder, rows):
        return folder
    _refuse_foreign_files(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(aside / "new", rows, seed=seed, size=size)
        _put_in_place(aside, folder, rows)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


class Row(NamedTuple):
    """One image of the set. Its file name encodes the generator's version, the seed and the size."""

    label: str
    patient: int
    slice_index: int
    prefix: str

    @property
    def image_path(self) -> str:
        """Path of the image, relative to the folder of the set."""
        return f"{self.label}/{self.prefix}_patient{self.patient:04d}_slice{self.slice_index}.png"


def _labels_text(rows: list[Row]) -> str:
    """Return the contents of ``labels.csv``."""
    lines = (f"{row.image_path},{row.label},patient{row.patient:04d}\n" for row in rows)
    return "image_path,label,patient_id\n" + "".join(lines)


def _is_complete(folder: Path, rows: list[Row]) -> bool:
    """Return whether the folder holds this set: the same ``labels.csv`` and every image that it lists."""
    try:
        table = (folder / "labels.csv").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    if table != _labels_text(rows):
        return False
    return all((folder / row.image_path).is_file() for row in rows)


def _refuse_foreign_files(folder: Path) -> None:
    """Raise TwinbudError if the folder holds files that do not belong to a phantom set."""
    own = re.compile(r"labels\.csv|\w+/v\d+-seed-?\d+-\d+px_patient\d+_slice\d+\.png")
    if folder.is_file():
        raise TwinbudError(
            "a file is in the place of the folder of the phantom set", where=str(folder), fix="Remove it"
        )
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.is_file() and not own.fullmatch(path.relative_to(folder).as_posix()):
            raise TwinbudError(
                f"the folder holds '{path.relative_to(folder)}', which does not belong to a phantom set",
                where=str(folder),
                fix="Choose another folder for the phantom set",
            )


def _write(folder: Path, rows: list[Row], *, seed: int, size: int) -> None:
    """Write every image and ``labels.csv`` into a new folder."""
    for label in CLASSES:
        (folder / label).mkdir(parents=True)

    def write_one(row: Row) -> None:
        pixels = phantom_slice(row.patient, row.slice_index, row.label, seed=seed, size=size)
        Image.fromarray(pixels).save(folder / row.image_path, compress_level=1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(write_one, rows):
            pass
    (folder / "labels.csv").write_text(_labels_text(rows), encoding="utf-8")


def _put_in_place(aside: Path, folder: Path, rows: list[Row]) -> None:
    """Rename ``aside/new`` to ``folder``, unless another process has put a complete set there meanwhile."""
    for attempt in range(5):
        if _is_complete(folder, rows):
            return
        with suppress(FileNotFoundError):
            folder.rename(aside / f"old-{attempt}")
        try:
            (aside / "new").rename(folder)
            return
        except OSError as error:
            # Another process was faster; the next round checks its set.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    raise TwinbudError(
        "another process keeps writing to the folder of the phantom set", where=str(folder), fix="Try again later"
    )
