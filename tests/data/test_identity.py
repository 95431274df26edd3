"""Which spellings are one label or one patient, and in which order classes stand."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data.readers.reader_image_folder import ReaderImageFolder

from twinbud.data.identity import (
    comparison_key,
    is_missing_patient,
    patient_key,
    respellings,
    same_path_key,
    sort_classes,
    visible_text,
)

SAME = [
    (
        "Glioma",
        "glioma",
        "GLIOMA ",
        "\tglioma",
        "glio\u200bma",
        "\ufeffglioma",
        "glioma\u00ad",
        "glioma.",
        "ｇｌｉｏｍａ",
    ),
    ("1", "1.0", "01", "001", " 1", "+1", "1.", "1e0", "1,0", "'001", '="001"', "\uff11", "\u0661"),
    ("1234", "1,234", "1234.0", "1.234e3", "1.234E+03", "1\u00a0234", "1'234"),
    ("l\xe9sion", "le\u0301sion", "L\xc9SION"),
    ("no tumour", "no  tumour", "no_tumour", "No-Tumour", "no\u00a0tumour", "no\u2013tumour"),
    ("patient_001", "Patient 1", "patient-1.0", "patient_1"),
    ("Stra\xdfe", "STRASSE"),
    ("-1", "\u22121", "-01"),
    ("0", "-0", "00", "0.0"),
]
DIFFERENT = [
    ("1", "-1", "10", "11", "1.5", "0.1"),
    ("1.1", "1.10", "11", "1-1"),
    ("HER2+", "HER2-", "HER2"),
    ("l\xe9sion", "lesion"),
    ("P1", "P11", "Q1", "P-1"),
    ("1.2.840.10", "1.2.840.1", "1.2.84.10"),
    ("A", "B", "\u0391"),
]


@pytest.mark.parametrize("group", SAME)
def test_spellings_of_one_name_have_one_key(group: tuple[str, ...]) -> None:
    assert {comparison_key(text) for text in group} == {comparison_key(group[0])}
    assert respellings([*group, "other"]) == [tuple(sorted(group))]


@pytest.mark.parametrize("group", DIFFERENT)
def test_different_names_have_different_keys(group: tuple[str, ...]) -> None:
    assert len({comparison_key(text) for text in group}) == len(group)
    assert respellings(group) == []


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_composition_and_surrounding_space_never_change_a_key(text: str) -> None:
    key = comparison_key(text)
    for other in (unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text), f" {text}\u200b "):
        assert comparison_key(other) == key


@given(number=st.integers(0, 10**12), zeros=st.integers(0, 4))
def test_a_whole_number_has_one_key_however_it_is_written(number: int, zeros: int) -> None:
    for text in ("0" * zeros + str(number), f"{number}.0", f"{number:,}", f"{float(number):.17e}", str(float(number))):
        assert comparison_key(text) == str(number)


@pytest.mark.parametrize("text", ["9e99", "9" * 10_000, "1e" + "9" * 50, "0" * 10_000, "1" + ",000" * 3000])
def test_a_huge_number_costs_nothing(text: str) -> None:
    assert len(comparison_key(text)) <= len(text) + 100


def test_an_unknown_patient_has_no_key() -> None:
    for text in ("", " ", "nan", "NaN", "NA", "n/a", "<NA>", "None", "unknown", "UNKNOWN", "-", "?", "Anonymous"):
        assert is_missing_patient(text)
        assert patient_key(text) is None
    assert patient_key(None) is None
    assert patient_key("Nan 1") == "nan 1"


def test_two_names_of_one_path_are_the_same_and_two_links_are_not(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "b").mkdir()
    (tmp_path / "link.png").symlink_to("a.png")
    assert same_path_key(tmp_path / "a.png") == same_path_key(tmp_path / "b" / ".." / "a.png")
    assert same_path_key(tmp_path / "a.png") != same_path_key(tmp_path / "link.png")


def test_what_cannot_be_seen_is_escaped() -> None:
    assert visible_text("no\u200brmal") == r"'no\u200brmal'"
    assert visible_text("le\u0301sion") == r"'le\u0301sion'"
    assert visible_text("im\r0") == r"'im\r0'"
    assert visible_text("a  b ") == r"'a \x20b '"
    assert visible_text("\xe9 a") == "'\xe9 a'"


@pytest.mark.parametrize(
    "names",
    [
        ("Normal", "Pneumonia", "covid"),
        ("grade10", "grade2", "Grade1", "grade"),
        ("10", "9", "1", "0", "x"),
        ("a_b", "A-c", "a b", "aB"),
        ("\xc9clat", "zebra", "eclat", "\xe0"),
        ("T1", "t2", "T10", "1T", "2t"),
        (" lead", "trail ", "mid dle", "UPPER", "lower"),
    ],
)
def test_classes_are_in_the_order_of_timms_folder_reader(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).mkdir()
        Image.new("L", (2, 2)).save(tmp_path / name / "1.png")
    assert {name: place for place, name in enumerate(sort_classes(names))} == ReaderImageFolder(
        str(tmp_path)
    ).class_to_idx


def test_names_that_timm_cannot_order_are_ordered_by_code_point() -> None:
    assert sort_classes(["a1", "A1", "a01", "\xb2"]) == ("A1", "a01", "a1", "\xb2")
