"""A series with files of several modalities, patients, sizes or colors is named in one line, with two of its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.dicom_files import dicom
from twinbud.config.data_config import DataConfig
from twinbud.core.cache import CACHE_VARIABLE
from twinbud.data.index import ImageIndex
from twinbud.data.source import read_index

PIXELS = np.arange(48, dtype=np.uint8).reshape(6, 8)
SERIES = {"SeriesInstanceUID": "1.2.9", "StudyInstanceUID": "1.2.8", "Modality": "CT"}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def index_of(folder: Path, *files: dict[str, Any], **settings: Any) -> ImageIndex:
    """Four files of one series and class, the last ones changed as given, and two files of another class."""
    plain: list[dict[str, Any]] = [{}] * (4 - len(files))
    for number, changes in enumerate([*plain, *files]):
        elements = {"pixels": PIXELS, **SERIES, "InstanceNumber": number, **changes}
        save(folder / "a" / f"{number}.dcm", **elements)
    for number in range(2):
        save(folder / "b" / f"{number}.dcm", pixels=PIXELS, PatientID=f"b{number}", Modality="MR")
    return read_index(DataConfig(data=str(folder), **settings))


def save(path: Path, *, pixels: np.ndarray, **elements: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dicom(pixels, **elements))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"Modality": "MR"},
            "1 series has files of different modality: 'a/0.dcm' (CT) and 'a/3.dcm' (MR); "
            "is the SeriesInstanceUID right?",
        ),
        (
            {"PatientID": "P2"},
            "1 series has files of different patient: 'a/0.dcm' and 'a/3.dcm'; is the SeriesInstanceUID right?",
        ),
        (
            {"pixels": PIXELS.T.copy()},
            "1 series has files of different size: 'a/0.dcm' (8×6) and 'a/3.dcm' (6×8); "
            "they count as volumes of their own",
        ),
        (
            {"PhotometricInterpretation": "MONOCHROME1"},
            "1 series has files of different photometric interpretation: 'a/0.dcm' (MONOCHROME2) and "
            "'a/3.dcm' (MONOCHROME1); they count as volumes of their own",
        ),
    ],
    ids=["modality", "patient", "size", "photometric"],
)
def test_a_mixed_series_is_named_with_two_files_and_what_differs(
    changes: dict[str, Any], line: str, tmp_path: Path
) -> None:
    assert index_of(tmp_path / "set", changes).notes == (line,)


def test_a_patient_of_two_sexes_is_named_without_showing_the_sex(tmp_path: Path) -> None:
    files = ({"PatientSex": "M"}, {"PatientSex": "F"}, {"PatientSex": "O"})
    assert index_of(tmp_path / "set", *files).notes == (
        "1 patient has files of different sex: 'a/1.dcm' and 'a/2.dcm'; they count as one patient: "
        "is the PatientID right?",
    )


def test_series_that_are_what_they_say_are_not_warned_of(tmp_path: Path) -> None:
    assert index_of(tmp_path / "set", {"Modality": ""}).notes == ()


def test_text_that_is_no_modality_of_the_standard_is_not_shown(tmp_path: Path) -> None:
    (line,) = index_of(tmp_path / "set", {"Modality": "JANE DOE"}).notes
    assert "(CT) and" in line
    assert "(another one)" in line
    assert "DOE" not in line


def test_the_middle_of_a_mixed_series_is_that_of_each_of_its_volumes(tmp_path: Path) -> None:
    place = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    files = [
        {**place, "ImagePositionPatient": [0, 0, number], "Modality": modality}
        for number, modality in enumerate(("CT", "CT", "CT", "MR"))
    ]
    image_index = index_of(tmp_path / "set", *files, frames="middle")
    assert [row.path for row in image_index.rows if row.label == "a"] == ["a/1.dcm", "a/3.dcm"]
