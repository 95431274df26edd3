"""The one CSV dialect of twinbud: every cell that is written here is read back unchanged.

Written: UTF-8, comma, line feed. A cell is quoted if it holds a quote, a separator or a line break, or if it begins or
ends with white space. Read: UTF-8 with or without a byte-order mark; comma, semicolon or tab, whichever gives the
header the most columns; any line ending. White space around an unquoted cell does not count; inside quotes it does.

Python's ``csv`` module cannot do this: before 3.11.9 it writes a carriage return without quotes, and its reader does
not say which cells were quoted.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from twinbud.core.errors import TwinbudError, first_few
from twinbud.core.files import read_bytes, write_text

_SEPARATORS = ",;\t"
_NEEDS_QUOTES = re.compile(r'[",;\t\r\n\v\f\x1c-\x1e\x85\u2028\u2029\ufeff]')
_CELL = {
    separator: re.compile(
        rf"""[^\S\r\n{separator}]*"(?P<quoted>(?:[^"]|"")*+)"[^\S\r\n{separator}]*(?=[{separator}\r\n]|\Z)"""
        rf"|(?P<plain>[^{separator}\r\n]*)"
    )
    for separator in _SEPARATORS
}
_LINE_END = re.compile(r"\r\n|\r|\n")


class CsvSyntaxError(ValueError):
    """A quote that is not closed, or that is followed by more text."""


def format_csv(rows: Iterable[Iterable[object]]) -> str:
    """Format rows as CSV text.

    Args:
        rows: Cells of each row, header first. None becomes an empty cell, anything else ``str(cell)``.
    """
    return "".join(_format_row(row) for row in rows)


def format_records(records: Sequence[Mapping[str, object]]) -> str:
    """Format mappings as CSV text: a column for each key in order of first appearance, a row for each mapping."""
    columns = list(dict.fromkeys(name for record in records for name in record))
    return format_csv([columns, *([record.get(name) for name in columns] for record in records)])


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Write rows (header first) as a CSV file, whole or not at all.

    Raises:
        TwinbudError: The disk is full or the folder is not writable.
    """
    write_text(path, format_csv(rows))


def parse_csv(text: str) -> Iterator[tuple[int, list[str]]]:
    """Parse CSV text.

    Yields:
        The number of each row as a spreadsheet shows it (the first is 1), and its cells. Rows whose cells are all
        blank are counted and not yielded.

    Raises:
        CsvSyntaxError: A quote is not closed, or is followed by more text.
    """
    for number, cells in _parse(text):
        yield number, [_stripped(cell) for cell in cells]


def read_cells(
    path: Path,
    required: Sequence[str],
    *,
    rename: str = "Restore the file that 'twinbud train' wrote",
    options: Mapping[str, str] | None = None,
    exact: Collection[str] = (),
    fallback_encoding: str | None = None,
) -> Iterator[tuple[int, dict[str, str]]]:
    """Read a CSV file with a header.

    Args:
        path: The file.
        required: Columns that it must have, each once.
        rename: Advice for a file that lacks them.
        options: For each column that an option of the command line names, that option.
        exact: Columns in which white space around an unquoted cell counts, because a program wrote them.
        fallback_encoding: Encoding of a file that is not UTF-8; None: such a file is an error.

    Yields:
        The number of each row, as a spreadsheet shows it (the header is 1), and its cells by column.

    Raises:
        TwinbudError: No such file, another encoding, a missing column, or a row of another length than the header.
    """
    try:
        rows = _parse(_decode(read_bytes(path, sys.maxsize), fallback_encoding))
        columns = [_stripped(cell) for cell in next(rows, (1, []))[1]]
        _check_columns(path, columns, required, rename, options or {})
        for number, cells in rows:
            if len(cells) != len(columns):
                few = len(cells) < len(columns)
                raise TwinbudError(
                    f"the row has {len(cells)} cells, the header has {len(columns)}",
                    where=f"{path}, row {number}",
                    fix="Add the missing cells" if few else "Put quotes around cells that hold the separator",
                )
            named = zip(columns, cells, strict=True)
            yield number, {name: cell.text if name in exact else _stripped(cell) for name, cell in named}
    except UnicodeDecodeError as error:
        raise TwinbudError(f"the file is not UTF-8 ({error})", where=str(path), fix="Save it as 'CSV UTF-8'") from error
    except CsvSyntaxError as error:
        fix = "Put quotes around the whole cell, and double the quotes inside it"
        raise TwinbudError(str(error), where=str(path), fix=fix) from error
    except OSError as error:
        raise TwinbudError(
            f"the CSV cannot be read ({error.strerror})", where=str(path), fix="Check the path"
        ) from error


def _decode(contents: bytes, fallback_encoding: str | None) -> str:
    try:
        return contents.decode("utf-8-sig")
    except UnicodeDecodeError:
        if fallback_encoding is None:
            raise
        return contents.decode(fallback_encoding)


def _format_row(cells: Iterable[object]) -> str:
    texts = ["" if cell is None else str(cell) for cell in cells]
    if texts == [""]:
        return '""\n'  # an empty line would not count as a row
    quoted = ('"{}"'.format(t.replace('"', '""')) if _NEEDS_QUOTES.search(t) or t != t.strip() else t for t in texts)
    return ",".join(quoted) + "\n"


class _Cell(NamedTuple):
    text: str
    is_quoted: bool


def _stripped(cell: _Cell) -> str:
    return cell.text if cell.is_quoted else cell.text.strip()


def _parse(text: str, separator: str | None = None) -> Iterator[tuple[int, list[_Cell]]]:
    separator = separator or max(_SEPARATORS, key=lambda one: _num_columns(text, one))
    cell, place, number = _CELL[separator], 0, 1
    while place < len(text):
        cells: list[_Cell] = []
        while True:
            match = cell.match(text, place)
            assert match is not None  # an empty cell always matches
            quoted, plain = match.group("quoted", "plain")
            if quoted is None and plain.lstrip().startswith('"'):
                raise CsvSyntaxError(f"row {number} has a quote that is not closed, or that is followed by more text")
            cells.append(_Cell(plain, False) if quoted is None else _Cell(quoted.replace('""', '"'), True))
            place = match.end()
            if not text.startswith(separator, place):
                break
            place += 1
        if any(one.is_quoted or one.text.strip() for one in cells):
            yield number, cells
        number += 1
        if end := _LINE_END.match(text, place):
            place = end.end()


def _num_columns(text: str, separator: str) -> int:
    """Return the number of cells of the first row that is not blank; 0 where it is malformed."""
    try:
        return len(next(_parse(text, separator), (1, []))[1])
    except CsvSyntaxError:
        return 0


def _check_columns(
    path: Path, columns: list[str], required: Sequence[str], rename: str, options: Mapping[str, str]
) -> None:
    counts = Counter(columns)
    if not columns:
        raise TwinbudError("the file is empty", where=str(path), fix=f"Give a CSV with the columns {_named(required)}")
    absent = [name for name in required if not counts[name]]
    if absent:
        has = first_few((f"'{name}'" for name in columns), 8)
        for name in absent:
            if name in options:
                problem = f"'{name}' is not a column of {path} (it has {has})"
                fix = "Give one of these, or leave the option out"
                raise TwinbudError(problem, where=options[name], fix=fix)
        raise TwinbudError(f"missing columns: {_named(absent)} (the header has {has})", where=str(path), fix=rename)
    if doubled := [name for name in required if counts[name] > 1]:
        raise TwinbudError(f"columns that appear more than once: {_named(doubled)}", where=str(path), fix=rename)


def _named(columns: Sequence[str]) -> str:
    return first_few(f"'{name}'" for name in columns)
