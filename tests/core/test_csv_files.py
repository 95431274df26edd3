"""Every cell that twinbud writes to a CSV is read back unchanged, whatever it holds."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twinbud.core.csv_files import format_csv, format_records, parse_csv, read_cells, write_csv
from twinbud.core.errors import TwinbudError

ODD_NAMES = (
    "im\r0", "a\nb", "a\r\nb", " a", "b ", "\ta", "a\xa0", '"', '""', 'say "x"', "a,b", "a;b;c;d;e;f", "a\tb",
    "", "=cmd|' /C calc'!A0", "+1", "-1", "@x", "'001", "image_path", "label", "\ufeff", "\u2028", "x" * 250,
    "\xe9", "e\u0301",
)  # fmt: skip
CELLS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(ODD_NAMES)


@given(
    rows=st.integers(1, 4).flatmap(
        lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=1, max_size=5)
    )
)
@example(rows=[[name, "x"] for name in ODD_NAMES])
@example(rows=[[""]])
def test_what_is_written_is_read_back(rows: list[list[str]]) -> None:
    columns = [str(place) for place in range(len(rows[0]))]
    read = [cells for _, cells in parse_csv(format_csv([columns, *rows]))]
    blank = [row for row in rows if not any(row) and len(row) > 1]
    assert read == [columns, *(row for row in rows if row not in blank)]


@given(rows=st.lists(st.lists(CELLS, min_size=2, max_size=2), min_size=1, max_size=5))
def test_pythons_own_reader_reads_the_same(rows: list[list[str]]) -> None:
    assert list(csv.reader(io.StringIO(format_csv(rows), newline=""))) == rows


def test_a_file_keeps_every_odd_name(tmp_path: Path) -> None:
    path = tmp_path / "names.csv"
    write_csv(path, [["image_path", "label"], *([name, "x"] for name in ODD_NAMES)])
    assert [cells["image_path"] for _, cells in read_cells(path, ["image_path", "label"])] == list(ODD_NAMES)


def test_a_file_of_a_run_without_a_column_is_to_be_restored(tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", [["path"]])
    fix = "Restore the file that 'twinbud train' wrote"
    with pytest.raises(TwinbudError, match=rf"missing columns: 'label' \(the header has 'path'\)\. {fix}"):
        list(read_cells(tmp_path / "x.csv", ["path", "label"]))


def test_none_is_an_empty_cell_and_records_share_their_columns() -> None:
    assert format_csv([["a", None, 1.5]]) == "a,,1.5\n"
    assert format_records([{"a": 1}, {"b": None, "a": 2}]) == "a,b\n1,\n2,\n"


def test_white_space_counts_inside_quotes_only() -> None:
    assert list(parse_csv('a , b\n " c" , "d"" "\n')) == [(1, ["a", "b"]), (2, [" c", 'd" '])]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_and_line_ends_are_recognized(separator: str, line_end: str) -> None:
    text = line_end.join([separator.join(["name", '"x,;y"', "z"]), "", separator.join("123"), separator * 2, ""])
    assert list(parse_csv(text)) == [(1, ["name", "x,;y", "z"]), (3, ["1", "2", "3"])]


@pytest.mark.parametrize("row", ['"a', '"a"b,c', '"' + "x" * 300_000])
def test_a_wrong_quote_is_one_line_with_its_row(tmp_path: Path, row: str) -> None:
    (tmp_path / "x.csv").write_text(f"image_path,label\n{row}\n", encoding="utf-8")
    with pytest.raises(TwinbudError, match=r"x\.csv: row 2 has a quote that is not closed, or that is followed by"):
        list(read_cells(tmp_path / "x.csv", ["label"]))
