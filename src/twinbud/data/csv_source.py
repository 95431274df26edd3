"""Read a CSV of images: ``image_path,label[,patient_id][,split]``, separated by commas, semicolons or tabs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from twinbud.config.data_config import DataConfig
from twinbud.config.fields import option_of
from twinbud.core.csv_files import read_cells
from twinbud.core.errors import TwinbudError, first_few
from twinbud.data.findings import are_combinations, check_label_columns, findings_of_columns, with_findings
from twinbud.data.identity import is_missing_patient, sort_classes, visible_text
from twinbud.data.index import SPLIT_WORDS, ImageIndex, ImageRef, ImageRow, SplitName, split_frame_name
from twinbud.data.repetitions import without_repetitions


def read_csv_source(path: Path, config: DataConfig, *, with_labels: bool = True) -> ImageIndex:
    """Read one image from each row; every cell is text.

    Several labels an image are read from a column each (``label_columns``), or from one column as ``a|b``.

    An image without a patient id counts as a patient of its own. A row that repeats an earlier one is left out and
    listed.

    Args:
        path: The CSV.
        config: Names of the columns.
        with_labels: Require a label in each row; otherwise labels, and their column, may be missing.

    Raises:
        TwinbudError: A CSV that cannot be read, missing columns, blank or wrong cells, paths without a file, or rows
            that contradict each other.
    """
    columns = config.label_names
    if columns is not None:
        check_label_columns(columns, f"--label-columns {config.label_columns}")
        if config.task not in ("auto", "multi-label"):
            problem = f"'{config.label_columns}' contradicts --task {config.task}, which has one column"
            raise TwinbudError(problem, where="--label-columns", fix="Give --label-column, or --task multi-label")
    labels = columns or ((config.label_column,) if with_labels else ())
    named = _named_columns(config)
    # optional columns that the user named must exist, or a typo would lose the patients
    optional = [name for name in (config.patient_column, config.split_column) if name in named]
    required = (config.image_column, *labels, *optional)
    options = dict.fromkeys(columns or (), "--label-columns") | named
    rename = "Rename the columns, or name them with --image-column and --label-column"
    rows = []
    for number, cells in read_cells(path, required, rename=rename, options=options, exact=(config.image_column,)):
        where = f"{path}, row {number}"
        for column in [name for name in required if name not in (columns or ())]:
            if not cells[column].strip():
                raise TwinbudError(f"column '{column}' is blank", where=where, fix="Fill it in or drop the row")
        name, file, frame = _existing(path.parent, cells[config.image_column])
        patient_id = cells.get(config.patient_column, "")
        rows.append(
            ImageRow(
                path=name,
                image=ImageRef(path.parent / file, frame),
                label=_label(cells, config, where),
                patient_id=None if is_missing_patient(patient_id) else patient_id,
                split=split_word(cells.get(config.split_column, ""), f"{where}, column '{config.split_column}'"),
                row_number=number,
            )
        )
    _check_rows(path, rows, config)
    kept, ignored = without_repetitions(str(path), rows)
    if not columns and not (with_labels and _are_several(config, kept)):
        classes = sort_classes(row.label for row in kept if row.label)
        return ImageIndex(source=str(path), rows=tuple(kept), classes=classes, ignored=tuple(ignored))
    kept, names = with_findings(kept)
    notes = (f"several labels an image (--task multi-label): {first_few(columns or names)}",)
    classes = columns or names
    return ImageIndex(
        source=str(path), rows=tuple(kept), classes=classes, ignored=tuple(ignored), notes=notes, task="multi-label"
    )


def _are_several(config: DataConfig, rows: Sequence[ImageRow]) -> bool:
    """Return whether the label column holds several labels an image, ``a|b``."""
    return config.task == "multi-label" or (config.task == "auto" and are_combinations(row.label for row in rows))


def _label(cells: Mapping[str, str], config: DataConfig, where: str) -> str:
    if config.label_names is None:
        return cells.get(config.label_column, "")
    return findings_of_columns(cells, config.label_names, where).text


def split_word(word: str, where: str) -> SplitName | None:
    """Return the part that a cell names, in any of SPLIT_WORDS and any case; None for a blank cell.

    Raises:
        TwinbudError: Another word.
    """
    plain = word.strip().lower()
    if plain and plain not in SPLIT_WORDS:
        fix = f"Write one of {', '.join(SPLIT_WORDS)}"
        raise TwinbudError(f"{visible_text(word)} is not the name of a part", where=where, fix=fix)
    return SPLIT_WORDS[plain] if plain else None


def _existing(folder: Path, name: str) -> tuple[str, str, int | None]:
    """Return the name, its file and its frame: as written if such a file exists, else without white space around it."""
    if os.path.isfile(folder / name):  # noqa: PTH113 - Path.is_file raises for a long name
        return name, name, None
    name = name.strip()
    return (name, name, None) if os.path.isfile(folder / name) else (name, *split_frame_name(name))  # noqa: PTH113


def _named_columns(config: DataConfig) -> dict[str, str]:
    """Return the single columns that the user named, each with its option."""
    usual, names = DataConfig(), ("image_column", "label_column", "patient_column", "split_column")
    return {getattr(config, name): option_of(name) for name in names if getattr(config, name) != getattr(usual, name)}


def _check_rows(path: Path, rows: Sequence[ImageRow], config: DataConfig) -> None:
    """Raise TwinbudError unless there are rows, each with an existing file, and all or none with a split."""
    if not rows:
        raise TwinbudError("the CSV has a header and no rows", where=str(path), fix="Add a row for each image")
    lost = [row.path for row in rows if not os.path.isfile(row.image.file)]  # noqa: PTH113 - as in _existing
    if lost:
        raise TwinbudError(
            f"{len(lost)} of {len(rows)} paths lead to no file: {first_few(map(_shortened, lost), 3)}",
            where=f"{path}, column '{config.image_column}'",
            fix=f"Write paths relative to {path.parent}, or absolute paths",
        )
    undecided = [row.row_number for row in rows if row.split is None]
    if 0 < len(undecided) < len(rows):
        raise TwinbudError(
            f"some rows have a split and others do not: blank in row {first_few(undecided, 3)}",
            where=f"{path}, column '{config.split_column}'",
            fix="Write train, val or test in each row, or leave the whole column blank",
        )


def _shortened(name: str) -> str:
    return visible_text(name if len(name) <= 100 else f"{name[:100]}…")
