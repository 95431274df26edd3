"""A CSV becomes rows: `image_path,label[,patient_id][,split]`, separated by commas, semicolons or tabs."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from twinbud.config.schema import DataConfig
from twinbud.core.errors import TwinbudError, first_few
from twinbud.core.files import read_bytes
from twinbud.data.index import SPLIT_WORDS, ImageIndex, ImageRef, ImageRow, SplitName


def read_csv_source(path: Path, config: DataConfig) -> ImageIndex:
    """One image a row; every cell is text, and a blank patient is a patient of its own."""
    rows: dict[str, ImageRow] = {}
    lines: dict[str, int] = {}
    rename = "Rename them, or say --image-column and --label-column"
    for line, cells in read_cells(
        path, (config.image_column, config.label_column, *_named_columns(config)), rename=rename
    ):
        where = f"{path}, row {line}"
        name, label = cells[config.image_column], cells[config.label_column]
        for column in (config.image_column, config.label_column, *_named_columns(config)):
            if not cells[column]:
                raise TwinbudError(
                    f"a value in '{column}'", got="a blank", where=where, fix="Fill it in or drop the row"
                )
        key = os.path.normpath(path.parent / name)
        if key in rows:
            got = f"'{name}' in row {lines[key]} already"
            raise TwinbudError("each image once", got=got, where=where, fix="Drop one of the rows")
        lines[key] = line
        rows[key] = ImageRow(
            path=name,
            image=ImageRef(path.parent / name),
            label=label,
            patient_id=cells.get(config.patient_column) or None,
            split=split_word(cells.get(config.split_column, ""), f"{where}, '{config.split_column}'"),
        )
    _check_csv(path, rows.values(), lines.values(), config)
    classes = tuple(sorted({row.label for row in rows.values()}))
    return ImageIndex(source=str(path), rows=tuple(rows.values()), classes=classes)


def _named_columns(config: DataConfig) -> list[str]:
    """Optional columns that were asked for by another name than the usual: a typo must not lose the patients."""
    usual = DataConfig()
    named = (config.patient_column, usual.patient_column), (config.split_column, usual.split_column)
    return [name for name, default in named if name != default]


def split_word(word: str, where: str) -> SplitName | None:
    """The split that a cell names in any of the usual words and any case; None for a blank cell.

    Raises:
        TwinbudError: Another word.
    """
    if not word:
        return None
    if word.lower() not in SPLIT_WORDS:
        valid = f"one of {', '.join(SPLIT_WORDS)}"
        raise TwinbudError(valid, got=f"'{word}'", where=where, fix="Correct the word")
    return SPLIT_WORDS[word.lower()]


def _check_csv(path: Path, rows: Iterable[ImageRow], lines: Iterable[int], config: DataConfig) -> None:
    rows = list(rows)
    if not rows:
        raise TwinbudError("a row an image", got="a header only", where=str(path), fix="Add the images")
    lost = [row.path for row in rows if not os.path.isfile(row.image.file)]  # noqa: PTH113 - which takes a name too long for a missing file
    if lost:
        raise TwinbudError(
            f"paths of images, relative to {path.parent}",
            got=f"{len(lost)} of {len(rows)} where there is no file: {first_few(lost, 3)}",
            where=f"{path}, column '{config.image_column}'",
            fix="Correct the paths",
        )
    undecided = [line for row, line in zip(rows, lines, strict=True) if row.split is None]
    if 0 < len(undecided) < len(rows):
        raise TwinbudError(
            "train, val or test in each row, or in none",
            got=f"a blank in row {first_few(undecided, 3)}",
            where=f"{path}, column '{config.split_column}'",
            fix="Fill them in, or leave the whole column blank",
        )


def read_cells(
    path: Path, required: Sequence[str], *, rename: str = "Rename them"
) -> Iterator[tuple[int, dict[str, str]]]:
    """Read a CSV; the separator is taken from its header, every cell is text without the blanks around it.

    Args:
        path: The CSV, in UTF-8 with or without a byte-order mark.
        required: Columns that it must have.
        rename: What to do where it lacks them.

    Yields:
        The number of each row, as a spreadsheet shows it (the header is 1), and its cells by column.

    Raises:
        TwinbudError: No such file, one in another encoding, missing columns, or a row of another length.
    """
    try:
        with io.StringIO(read_bytes(path, sys.maxsize).decode("utf-8-sig"), newline="") as file:
            header = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t", key=header.count), strict=True)
            columns = [name.strip() for name in next(reader, [])]
            _check_columns(path, columns, required, rename)
            for values in reader:
                if values and len(values) != len(columns):
                    raise TwinbudError(
                        f"{len(columns)} cells, as in the header",
                        got=f"{len(values)}",
                        where=f"{path}, row {reader.line_num}",
                        fix="Put quotes around cells that hold the separator",
                    )
                if values:
                    yield reader.line_num, dict(zip(columns, map(str.strip, values), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        got = f"a file that is none ({error})"
        raise TwinbudError("a CSV in UTF-8", got=got, where=str(path), fix="Save it as 'CSV UTF-8'") from error
    except OSError as error:
        raise TwinbudError("a CSV", got=str(error.strerror), where=str(path), fix="Check the path") from error


def _check_columns(path: Path, columns: list[str], required: Sequence[str], rename: str) -> None:
    counts = Counter(columns)
    if any(counts[name] != 1 for name in required):
        wanted = first_few(f"'{name}'" for name in required)
        got = first_few((f"'{name}'" for name in columns), 8) or "none"
        raise TwinbudError(f"the columns {wanted}, each once", got=got, where=str(path), fix=rename)
