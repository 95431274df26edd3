"""Write and read ``split.csv``: which image of a run trains, validates and tests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from twinbud.core.csv_files import read_cells, write_csv
from twinbud.core.errors import TwinbudError, first_few
from twinbud.data.csv_source import split_word
from twinbud.data.identity import visible_text
from twinbud.data.index import ImageIndex, SplitName

PartName = Literal[SplitName, "held-out"]

SPLIT_COLUMNS = ("image_path", "label", "patient_id", "split", "labelled", "pixels_sha256")
"""Columns of split.csv; ``labelled`` is 1 for the training images whose labels are used."""


@dataclass(frozen=True, kw_only=True)
class SplitRow:
    """One row of a split.csv.

    Attributes:
        image_path: The image, as ``ImageRow.path``.
        label: Name of its class.
        patient_id: As the source writes it; None where the patient is not known.
        split: Its part; ``held-out`` is the test part of a run with ``develop``.
        labelled: Whether its label is used in training.
        digest: SHA-256 of the decoded pixels, if the file has it.
    """

    image_path: str
    label: str
    patient_id: str | None
    split: PartName
    labelled: bool
    digest: str | None = None


def write_split(path: Path, rows: Iterable[SplitRow]) -> None:
    """Save a split as a CSV with the columns of SPLIT_COLUMNS."""
    cells = ((r.image_path, r.label, r.patient_id, r.split, int(r.labelled), r.digest) for r in rows)
    write_csv(path, [SPLIT_COLUMNS, *cells])


def read_split(path: Path) -> tuple[SplitRow, ...]:
    """Read a split.csv; ``patient_id``, ``labelled`` and ``pixels_sha256`` may be absent.

    Raises:
        TwinbudError: No such file, missing columns, an unknown or blank split, or a path twice.
    """
    rows: dict[str, SplitRow] = {}
    required, exact = ("image_path", "label", "split"), ("image_path", "label", "patient_id")
    for number, cells in read_cells(path, required, rename="Give the split.csv of a run", exact=exact):
        where = f"{path}, row {number}"
        name, word = cells["image_path"], cells["split"]
        split = "held-out" if word == "held-out" else split_word(word, f"{where}, column 'split'")
        if split is None:
            raise TwinbudError("column 'split' is blank", where=where, fix="Write train, val or test")
        if name in rows:
            problem = f"the image {visible_text(name)} appears a second time"
            raise TwinbudError(problem, where=where, fix="Drop one of the rows")
        rows[name] = SplitRow(
            image_path=name,
            label=cells["label"],
            patient_id=cells.get("patient_id") or None,
            split=split,
            labelled=cells.get("labelled") == "1",
            digest=cells.get("pixels_sha256") or None,
        )
    return tuple(rows.values())


def with_split_file(image_index: ImageIndex, path: Path) -> ImageIndex:
    """Return the index with the parts that a split.csv gives its rows, matched by path.

    Raises:
        TwinbudError: The file has a held-out part, or other paths than the index.
    """
    given: dict[str, SplitName] = {}
    for row in matching_rows(image_index, path):
        if row.split == "held-out":
            raise TwinbudError(
                f"{visible_text(row.image_path)} is in the part 'held-out': the split is that of a run with --develop",
                where=f"--split {path}",
                fix="Give the split.csv of a run without --develop",
            )
        given[row.image_path] = row.split
    return replace(image_index, rows=tuple(replace(row, split=given[row.path]) for row in image_index.rows))


def matching_rows(image_index: ImageIndex, path: Path) -> tuple[SplitRow, ...]:
    """Read a split.csv that has exactly the paths of an index.

    Raises:
        TwinbudError: See ``read_split``; or it has other paths.
    """
    rows = read_split(path)
    given, known = {row.image_path for row in rows}, {row.path for row in image_index.rows}
    absent = [visible_text(row.image_path) for row in rows if row.image_path not in known]
    extra = [visible_text(row.path) for row in image_index.rows if row.path not in given]
    if absent or extra:
        problems = [f"the data lacks images of the split ({first_few(absent, 3)})"] if absent else []
        problems += [f"the split lacks images of the data ({first_few(extra, 3)})"] if extra else []
        raise TwinbudError(
            " and ".join(problems),
            where=f"--split {path} for {image_index.source}",
            fix="Give the split of the same data, or leave out --split",
        )
    return rows
