"""Nothing of a patient leaves a DICOM file: a canary in every text of it turns up in no output of any command."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.datadict import DicomDictionary  # pyright: ignore[reportPrivateImportUsage]
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from helpers.builders import save_vit_teacher
from helpers.dicom_files import EXPLICIT, IMPLICIT, JPEG_LS, dataset_of, dicom, file_of, set_pixels
from twinbud.cli.main import main
from twinbud.core.cache import CACHE_VARIABLE
from twinbud.data.patient_salt import is_key
from twinbud.data.split_file import read_split

CANARY = "CANARY"
_TEXTS = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"}
_NEEDED = {0x00080005, 0x00080060, 0x00280004, 0x00281056, 0x00280301}
"""Texts that say how pixels are meant; a canary there would make another file."""


def planted(pixels: np.ndarray, number: int, syntax: str, *, patient: str) -> bytes:
    """A file with a canary in each element of text that the standard knows, a private one, and one in a sequence."""
    dataset = dataset_of(pixels, bits=12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for tag, (vr, *_rest) in DicomDictionary.items():
            is_chosen = number < 3 or tag >> 16 == 0x0010  # all of them take long
            if is_chosen and vr in _TEXTS and tag not in _NEEDED and tag >> 16 not in (0x0000, 0x0002):
                dataset.add_new(tag, vr, CANARY)
        for name in ("PatientBirthDate", "StudyDate", "AcquisitionDateTime", "StudyTime"):
            dataset.add_new(name, "LO", CANARY)
        item = Dataset()
        item.PatientName = CANARY
        dataset.OtherPatientIDsSequence = Sequence([item])
        dataset.add_new(0x00091001, "LO", CANARY)
        dataset.PatientName, dataset.PatientID, dataset.StudyInstanceUID = CANARY, patient, f"1.2.{number}"
        dataset.AccessionNumber = f"{CANARY}{number}"
        dataset.BurnedInAnnotation = "YES" if number % 2 else "NO"
        set_pixels(dataset, pixels, syntax)
        return file_of(dataset, syntax)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of twelve patients each, with two images a patient; a report, and two damaged files."""
    folder = tmp_path_factory.mktemp("hospital")
    generator = np.random.default_rng(0)
    for level, label in enumerate(("dark", "light")):
        (folder / label).mkdir()
        for number in range(24):
            pixels = generator.normal(500 + 1500 * level, 200, (32, 32)).clip(0, 4095).astype(np.uint16)
            syntax = (EXPLICIT, IMPLICIT, JPEG_LS)[number % 3]  # each of them once with all canaries
            contents = planted(pixels, number, syntax, patient=f"{CANARY}-{label}-{number // 2}")
            (folder / label / f"1.2.{number}").write_bytes(contents)
    whole = (folder / "dark" / "1.2.0").read_bytes()
    (folder / "dark" / "truncated").write_bytes(whole[:-900])
    (folder / "light" / "odd.dcm").write_bytes(whole.replace(b"MONOCHROME2", f"{CANARY:11}".encode()))
    (folder / "light" / "report").write_bytes(
        dicom(None, PatientName=CANARY, PatientID=CANARY, StudyDescription=CANARY)
    )
    return folder


def files_below(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]


def test_no_text_of_a_file_is_in_any_output_of_any_command(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    caplog.set_level(logging.DEBUG)
    teacher = save_vit_teacher(tmp_path / "teacher")
    run = tmp_path / "run"
    words = ["train", "--data", str(source), "--teacher", teacher, "--profile", "paper", "--image-size", "28"]
    words += ["--epochs", "1", "--logits", "--compile", "off", "--precision", "float32"]
    assert main([*words, "--output", str(tmp_path / "refused")]) == 2  # the damaged files
    assert main([*words, "--skip-broken", "--output", str(run)]) == 0
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    assert main(["evaluate", str(run), "--skip-broken", "--output", str(tmp_path / "own")]) == 0
    assert main(["evaluate", str(run), "--data", str(copy), "--skip-broken", "--output", str(tmp_path / "other")]) == 0
    predictions = str(tmp_path / "predictions.csv")
    assert main(["predict", str(run), str(source), "--skip-broken", "--output", predictions]) == 0
    assert main(["predict", str(run), str(source / "dark" / "truncated")]) == 2
    assert main(["predict", str(run), str(source / "light" / "report")]) == 2
    shown = capfd.readouterr()
    said = shown.out + shown.err + caplog.text
    assert "is truncated" in said
    assert "(Basic Text SR)" in said
    assert "24 files may show patient data in their pixels" in said
    assert CANARY not in said
    written = [*files_below(run, tmp_path / "own", tmp_path / "other", tmp_path / "cache"), Path(predictions)]
    assert len(written) > 20
    for file in written:
        contents = file.read_bytes()
        assert CANARY.encode() not in contents, file
        assert CANARY.encode("utf-16-le") not in contents, file
    split = read_split(run / "split.csv")
    assert len(split) == 48
    assert all(is_key(row.patient_id) for row in split)
    assert len({row.patient_id for row in split}) == 24
    parts = [{row.patient_id for row in split if row.split == part} for part in ("train", "test")]
    assert not parts[0] & parts[1]
    salt = next((tmp_path / "cache" / "patient-salts").iterdir()).read_bytes().strip()
    assert all(salt not in file.read_bytes() for file in files_below(run))


def evaluation_of_others(run: Path, source: Path, *words: Any) -> int:
    return main(["evaluate", str(run), "--data", str(source), *map(str, words)])


def test_patients_of_a_run_are_found_in_other_data_as_long_as_its_salt_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    for name in ("first", "second"):
        for level, label in enumerate(("dark", "light")):
            (tmp_path / name / label).mkdir(parents=True)
            for number in range(8 if name == "first" else 12):
                pixels = generator.normal(500 + 1500 * level, 200, (28, 28)).clip(0, 4095).astype(np.uint16)
                (tmp_path / name / label / f"{number}.dcm").write_bytes(dicom(pixels, PatientID=f"{label}{number}"))
    teacher, run = save_vit_teacher(tmp_path / "teacher"), tmp_path / "run"
    words = ["--teacher", teacher, "--profile", "paper", "--image-size", "28", "--epochs", "1", "--compile", "off"]
    assert main(["train", "--data", str(tmp_path / "first"), *words, "--output", str(run)]) == 0
    in_training = sum(row.split == "train" for row in read_split(run / "split.csv"))
    capsys.readouterr()
    assert evaluation_of_others(run, tmp_path / "second") == 0
    assert f"{in_training} of the run's training images or patients" in capsys.readouterr().out
    (salt,) = (tmp_path / "cache" / "patient-salts").iterdir()
    moved = salt.rename(tmp_path / "salt")
    assert evaluation_of_others(run, tmp_path / "second") == 2
    assert "the salt cannot be read (No such file or directory). Give the salt of the run" in capsys.readouterr().err
    assert evaluation_of_others(run, tmp_path / "second", "--patient-salt", moved) == 0
    assert f"{in_training} of the run's training images or patients" in capsys.readouterr().out
    other = tmp_path / "other-salt"
    other.write_text("f" * 32)
    assert evaluation_of_others(run, tmp_path / "second", "--patient-salt", other) == 2
    assert "the patient ids are hashed with a different salt than in the run, so that" in capsys.readouterr().err


def test_without_pydicom_a_dicom_file_is_an_error_that_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "scan.dcm").write_bytes(dicom(np.zeros((4, 4), np.uint16)))
    code = (
        "import sys; sys.modules['pydicom'] = None\nimport twinbud\n"
        f"try: twinbud.read_image({str(tmp_path / 'scan.dcm')!r})\n"
        "except twinbud.TwinbudError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        'DICOM files: the package pydicom is not installed. Run: pip install "twinbud[dicom]"; or leave such files out.'
    )
