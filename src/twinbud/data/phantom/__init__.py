"""The embedded phantom set: generated axial head slices in four classes.

The classes are those of the public brain-tumour MRI set; the slices stand for T1-weighted ones after contrast.
Nothing but the lesion depends on the class: a patient's head, the slice's level, the pose, the contrast, the
blur and the noise come from streams that do not know the label, so that no global statistic gives it away.
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

from twinbud.core.cache import cache_folder, reason_of, temporary_folder, warn_of_cache
from twinbud.core.errors import TwinbudError, explained_writes, unknown_choice
from twinbud.core.rng import numpy_stream
from twinbud.data.phantom.anatomy import AIR, Canvas, draw_anatomy, skin_depth
from twinbud.data.phantom.lesions import draw_lesion, mass_effect, paint_lesion
from twinbud.data.phantom.parts import paint_head
from twinbud.data.phantom.scanner import acquire, draw_acquisition, head_coordinates

CLASSES: tuple[str, ...] = ("glioma", "meningioma", "notumor", "pituitary")
"""The labels, in the order of their sorted names."""

PHANTOM_VERSION = 1
"""Raised whenever a pixel of the set changes, so that no cached folder outlives its generator."""


def phantom_slice(patient: int, slice_index: int, label: str, *, seed: int = 0, size: int = 224) -> NDArray[np.uint8]:
    """One slice, uint8 of shape (size, size): a pure function of its arguments.

    A patient's slices share the head and the tumour and differ in level, pose, contrast and noise; another
    label puts another tumour (or none) into the same head, taken in the same way.

    Raises:
        TwinbudError: ``label`` is none of ``CLASSES``.
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
    # Only the box that holds the head is painted; the rest is air.
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
    """Write the set once and return its folder: ``<class>/<name>.png`` and ``labels.csv``.

    ``labels.csv`` has the columns image_path (relative to the folder), label and patient_id. A complete folder
    is reused; an incomplete one is built anew. The set is built beside its place and then renamed into it, so
    that two processes may ask at once.

    Raises:
        TwinbudError: a count is below 1, ``root`` holds files that are not this set, or it cannot be written.
    """
    for name, value in (
        ("patients_per_class", patients_per_class),
        ("slices_per_patient", slices_per_patient),
    ):
        if value < 1:
            raise TwinbudError("at least 1", got=str(value), where=f"phantom {name}")
    if size < 32:
        raise TwinbudError("at least 32 pixels", got=str(size), where="phantom size")
    prefix = f"v{PHANTOM_VERSION}-seed{seed}-{size}px"
    name = f"{prefix}-{patients_per_class}x{slices_per_patient}"
    rows = [
        # A patient's number does not depend on how many there are: smaller sets are subsets of larger ones.
        Row(label, patient * len(CLASSES) + CLASSES.index(label), slice_index, prefix)
        for label, patient, slice_index in product(CLASSES, range(patients_per_class), range(slices_per_patient))
    ]
    if root is not None:
        with explained_writes(root, "root"):
            return _complete_folder(Path(root), rows, seed=seed, size=size)
    try:
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
    """One image of the set; its file name tells the generator's version, seed and size."""

    label: str
    patient: int
    slice_index: int
    prefix: str

    @property
    def image_path(self) -> str:
        """The image's path within the folder."""
        return f"{self.label}/{self.prefix}_patient{self.patient:04d}_slice{self.slice_index}.png"


def _labels_text(rows: list[Row]) -> str:
    """The text of ``labels.csv``."""
    lines = (f"{row.image_path},{row.label},patient{row.patient:04d}\n" for row in rows)
    return "image_path,label,patient_id\n" + "".join(lines)


def _is_complete(folder: Path, rows: list[Row]) -> bool:
    """Whether the folder holds exactly this set: the same table and every image it names."""
    try:
        table = (folder / "labels.csv").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    if table != _labels_text(rows):
        return False
    return all((folder / row.image_path).is_file() for row in rows)


def _refuse_foreign_files(folder: Path) -> None:
    """Stop before a folder is replaced that holds anything but a phantom set's files."""
    own = re.compile(r"labels\.csv|\w+/v\d+-seed-?\d+-\d+px_patient\d+_slice\d+\.png")
    if folder.is_file():
        raise TwinbudError("a folder for the phantom set", got="a file", where=str(folder))
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.is_file() and not own.fullmatch(path.relative_to(folder).as_posix()):
            raise TwinbudError(
                "an empty folder or a phantom set",
                got=f"a folder with {path.relative_to(folder)}",
                where=str(folder),
                fix="Choose another folder for the phantom set",
            )


def _write(folder: Path, rows: list[Row], *, seed: int, size: int) -> None:
    """Generate every image and the table into a new folder."""
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
    """Rename ``aside/new`` to ``folder``; a complete set that another process put there meanwhile stays."""
    for attempt in range(5):
        if _is_complete(folder, rows):
            return
        with suppress(FileNotFoundError):
            folder.rename(aside / f"old-{attempt}")
        try:
            (aside / "new").rename(folder)
            return
        except OSError as error:
            # The other process was quicker, and its set is looked at in the next round.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    raise TwinbudError("to be alone in a folder", got="another process that keeps writing there", where=str(folder))
