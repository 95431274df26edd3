"""How the files of a downloaded set are arranged: which are images, their class, and their patient.

A layout function takes the folder that holds the class folders, and lists every file below it, as a sample or with the
reason why it is not one. Paths are relative to that folder, so that they do not depend on where the copy is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from twinbud.core.csv_files import read_cells
from twinbud.core.files import printable
from twinbud.data.folder import walk, why_ignored
from twinbud.data.identity import is_missing_patient
from twinbud.data.index import SPLIT_WORDS, IgnoredFile, ImageRef, ImageRow
from twinbud.data.split_notes import counted


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The files of a set.

    Attributes:
        rows: One row an image.
        ignored: All other files, each with the reason.
        notes: What was found and not found beside the images, as sentences for the report.
    """

    rows: tuple[ImageRow, ...]
    ignored: tuple[IgnoredFile, ...] = ()
    notes: tuple[str, ...] = ()


_MASKS = "masks"
"""Name of the folders of segmentations that stand beside the images."""

Layout = Callable[[Path, Mapping[str, str]], Listing]
"""Takes the folder of the set and its class folders, each relative to it, with the class names; lists the files."""


def class_folders(folder: Path, classes: Mapping[str, str]) -> Listing:
    """List the images of class folders; every other file below ``folder`` is ignored, a folder of masks in one line.

    Args:
        folder: The folder of the set.
        classes: The class of each class folder, relative to ``folder``.

    Raises:
        TwinbudError: A folder cannot be read.
    """
    rows: list[ImageRow] = []
    ignored: list[IgnoredFile] = []
    num_masks: Counter[str] = Counter()
    for file in walk(folder):
        relative = file.relative_to(folder)
        path = relative.as_posix()
        label = next((label for name, label in classes.items() if path.startswith(f"{name}/")), None)
        reason = why_ignored(file, relative)
        if reason is None and label is not None:
            rows.append(ImageRow(path=path, image=ImageRef(file), label=label))
        elif reason is None and relative.parent.name == _MASKS:
            num_masks[relative.parent.as_posix()] += 1
        else:
            ignored.append(IgnoredFile(path=printable(path), reason=reason or "not in a folder of images of the set"))
    for path, count in num_masks.items():
        ignored.append(IgnoredFile(path=printable(path), reason=f"{counted(count, 'mask')}, not samples"))
    return Listing(rows=tuple(rows), ignored=tuple(ignored))


def divided_class_folders(folder: Path, classes: Mapping[str, str]) -> Listing:
    """List class folders within folders named like splits, and give each image the part of its folder.

    Raises:
        TwinbudError: A folder cannot be read.
    """
    listed = class_folders(folder, classes)
    rows = (replace(row, split=SPLIT_WORDS[row.path.partition("/")[0].lower()]) for row in listed.rows)
    return replace(listed, rows=tuple(rows))


METADATA = {
    "1NonCOVID": "meta_data_normal.csv",
    "2COVID": "meta_data_covid.csv",
    "3CAP": "meta_data_cap.csv",
}
"""The table that names the patients of each class folder of ``covid-ct-slices``."""
_NESTED = "curated_data"
_PATIENT_IN_NAME = (
    (re.compile(r"\d+_Morozov_study_0*(\d+)_\d+"), "study_id_"),
    (re.compile(r"\d+_Rahimzadeh_.+?_(patient\d+)_.+"), ""),
    (re.compile(r"\d+_Jun_coronacases_(case\d+)_\d+"), ""),
    (re.compile(r"\d+_Jun_(radiopaedia_\d+)_\d+_\d+_case\d+_\d+"), ""),
    (re.compile(r"((?:P|N|normal|cap|cp)\d+)_\d+"), ""),
)
"""Patterns of file names, and what stands before the matched number in the metadata's id of the patient."""


def ct_slices(folder: Path, classes: Mapping[str, str]) -> Listing:
    """List class folders of CT slices with patients: from the metadata tables, else from the file names.

    The tables stand beside the outermost folder named ``curated_data``, or in ``folder``. An image that has neither a
    row nor a telling name has no known patient.

    Raises:
        TwinbudError: A folder or table cannot be read, or a table lacks a column.
    """
    listed = class_folders(folder, classes)
    outer = folder
    while outer.name == _NESTED:
        outer = outer.parent
    known: dict[str, str] = {}
    notes: list[str] = []
    for name, table in METADATA.items():
        file = next((place / table for place in (folder, outer) if (place / table).is_file()), None)
        if file is None:
            notes.append(f"{table} was not found: the patients of {classes[name]} are read from the file names")
            continue
        # the tables hold free text from several hospitals in more than one encoding
        required, again = ("File name", "Patient ID"), "Download the set again"
        for _, cells in read_cells(file, required, rename=again, fallback_encoding="latin-1"):
            if not is_missing_patient(cells["Patient ID"]):
                known[f"{name}/{cells['File name']}"] = cells["Patient ID"].strip()
    rows = (replace(row, patient_id=known.get(row.path) or patient_in_name(row.image.file.stem)) for row in listed.rows)
    return replace(listed, rows=tuple(rows), notes=tuple(notes))


def patient_in_name(stem: str) -> str | None:
    """Return the patient that a file name of ``covid-ct-slices`` tells, spelled as the metadata does where it can be.

    >>> patient_in_name("16_Morozov_study_0017_20"), patient_in_name("cap006_10"), patient_in_name("15_Cohen_x-l-a")
    ('study_id_17', 'cap006', None)
    """
    for pattern, before in _PATIENT_IN_NAME:
        if match := pattern.fullmatch(stem):
            return before + match[1]
    return None
