"""Volumes from training to prediction: a volume is a group, and no text of its header leaves it."""

from __future__ import annotations

import gzip
import logging
from collections import defaultdict
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from helpers.command import refusal, train, twinbud
from helpers.runs import read_json, rows
from helpers.volumes import brain, nifti
from twinbud import read_image
from twinbud.cli.options import parse
from twinbud.config.data_config import DataConfig
from twinbud.core.cache import CACHE_VARIABLE
from twinbud.data.formats.decoding import digest
from twinbud.data.image_store import load_image_store
from twinbud.data.source import read_index

CANARY = "CANARY^JANE"


def planted(samples: np.ndarray, *, packed: bool) -> bytes:
    """A file with a canary in each field of text, in an extension and, if packed, in the head of the gzip stream."""
    text = CANARY.encode()
    fields = dict.fromkeys(("data_type", "db_name", "descrip", "aux_file", "intent_name"), text)
    contents = nifti(samples, extension=text, **fields)
    if not packed:
        return contents
    file = BytesIO()
    with gzip.GzipFile(f"{CANARY}.nii", "wb", fileobj=file) as stream:
        stream.write(contents)
    return file.getvalue()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of five volumes each, which have empty slices at both ends."""
    folder = tmp_path_factory.mktemp("volumes")
    for label, bright in (("left", 1), ("right", -2)):
        (folder / label).mkdir()
        for number in range(5):
            samples = brain((9, 8, 7)) + np.int16(number)
            samples[bright] *= 3
            samples[:, 0] = samples[:, -1] = 0
            name = f"{number}.nii.gz" if number % 2 else f"{number}.nii"
            (folder / label / name).write_bytes(planted(samples, packed=name.endswith("gz")))
    return folder


def test_no_slice_of_a_volume_is_in_two_parts_and_no_text_of_a_header_is_in_any_output(
    source: Path, shared_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    caplog.set_level(logging.DEBUG)
    run = tmp_path / "run"
    said = [train(source, shared_teacher, run, "--axis", "coronal", "--logits")]
    assert said[0].code == 0, said[0].err
    assert "20 of 80 images are frames or slices that show a single value" in said[0].err

    parts = defaultdict(set)
    for row in rows(run / "split.csv"):
        parts[row["image_path"].partition("[")[0]].add(row["split"])
    assert len(parts) == 10
    assert {frozenset(part) for part in parts.values()} == {frozenset({"train"}), frozenset({"test"})}
    assert read_json(run / "model" / "config.json")["reading"]["axis"] == "coronal"

    said.append(twinbud("evaluate", run, "--output", tmp_path / "evaluation"))
    predictions = tmp_path / "predictions.csv"
    said.append(twinbud("predict", run, source / "left", "--output", predictions))
    assert [answer.code for answer in said] == [0, 0, 0], said
    assert [row["path"] for row in rows(predictions)][:9] == [
        f"{source}/left/{name}" for name in (*(f"0.nii[{number}]" for number in range(8)), "1.nii.gz[0]")
    ]
    for number, contents in enumerate(((source / "left" / "0.nii").read_bytes(), nifti(brain((9, 8, 7, 2))))):
        broken = tmp_path / f"broken-{number}.nii"
        broken.write_bytes(contents[:-1] if number == 0 else contents)
        said.append(twinbud("predict", run, broken))
        assert ("is truncated", "holds 2 volumes")[number] in refusal(said[-1])

    heard = "".join(answer.out + answer.err for answer in said) + caplog.text
    assert CANARY not in heard
    written = [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith("broken")]
    assert len(written) > 90  # the run, the evaluation, the predictions, and the cache of pixels
    assert not [path for path in written if CANARY.encode() in path.read_bytes()]


def test_slices_is_another_name_of_frames() -> None:
    words = ["train", "--data", "phantom", "--output", "run"]
    assert parse([*words, "--slices", "middle"]).frames == "middle"
    assert not hasattr(parse(words), "frames")
    assert "--volume" in refusal(twinbud("train", "--data", "phantom", "--volume", "x", "--output", "run"))


def test_the_slices_of_a_volume_are_the_images_of_the_store(source: Path) -> None:
    settings = DataConfig(data=str(source), axis="sagittal")
    image_index, image_store = load_image_store(read_index(settings), image_size=8, max_megapixels=1, skip_broken=False)
    assert len(image_index.rows) == 2 * 5 * 9
    row = image_index.rows[5]
    assert (row.path, row.patient_id) == ("left/0.nii[5]", "of left/0.nii")
    single = read_image(source / "left" / "0.nii", frame=5, axis="sagittal")
    assert single.shape == (7, 8, 3)
    assert image_store.digests[5] == digest(single) != image_store.digests[4]


def test_slices_that_a_csv_names_without_their_patient_stay_together(source: Path, tmp_path: Path) -> None:
    names = [
        f"{source}/{label}/{number}.nii[{slice_}]"
        for label in ("left", "right")
        for number in (0, 2)
        for slice_ in (2, 3)
    ]
    lines = [f"{name},{name.split('/')[-2]},{'P1' if 'left/2' in name else ''}" for name in names]
    (tmp_path / "images.csv").write_text("\n".join(["image_path,label,patient_id", *lines]))
    patients = [row.patient_id for row in read_index(DataConfig(data=str(tmp_path / "images.csv"))).rows]
    expected = [f"of {source}/left/0.nii", "P1", f"of {source}/right/0.nii", f"of {source}/right/2.nii"]
    assert patients == [patient for patient in expected for _ in range(2)]


def test_what_is_odd_about_files_is_noted_once_with_their_number(source: Path, tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(2):
            flat = nifti(brain(), np.diag([1.0, 1, 3, 1]), sform_code=0, qform_code=0)
            (tmp_path / label / f"{number}.nii").write_bytes(flat)
        (tmp_path / label / "mask.nii").write_bytes(nifti(brain(), intent_code=1002))
    image_index = read_index(DataConfig(data=str(tmp_path), axis="coronal"))
    assert image_index.notes == (
        "2 files without an image, left out: 'a/mask.nii', 'b/mask.nii'",
        "4 files with coronal pixels that are not square, used as they are stored",
        "4 files without an orientation, read as LAS (the default of nibabel): check left and right",
    )
    assert read_index(DataConfig(data=str(source))).notes == ()
    assert len(read_index(DataConfig(data=str(tmp_path))).notes) == 2  # axial pixels are square
