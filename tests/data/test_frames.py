"""Files of several images, of none, and of known patients: what the index makes of them, whatever their format."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image

from helpers.slices import SlicesReader, save_slices, use_slices
from twinbud import read_image
from twinbud.config.data_config import DataConfig
from twinbud.config.reading import NAMED_WINDOWS, Reading, canonical_window
from twinbud.core.cache import CACHE_VARIABLE
from twinbud.core.errors import TwinbudError
from twinbud.data.csv_source import read_csv_source
from twinbud.data.formats.base import BrokenImageError, FileSurvey
from twinbud.data.image_store import load_image_store
from twinbud.data.index import ImageIndex, frame_name, split_frame_name
from twinbud.data.patient_salt import PatientSalt, default_salt_file, is_key, require_one_salt
from twinbud.data.source import find_images, read_index
from twinbud.data.split import make_split
from twinbud.data.split_file import read_split, with_split_file, write_split


@pytest.fixture(autouse=True)
def slices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_slices(monkeypatch)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two classes: a file of four images and ten of one, without suffix or with a foreign one; a report; a PNG."""
    for label in ("a", "b"):
        save_slices(tmp_path / "set" / label / "volume.xyz", 4, patient="Doe^Jane", value=ord(label))
        for number in range(10):
            save_slices(tmp_path / "set" / label / f"1.2.{number}", patient=f"{label}{number}", value=number)
    save_slices(tmp_path / "set" / "a" / "report", 0)
    Image.new("L", (3, 3), 9).save(tmp_path / "set" / "b" / "plain.png")
    return tmp_path / "set"


def index(source: Path, **settings: object) -> ImageIndex:
    return read_index(DataConfig(data=str(source), **settings))  # type: ignore[arg-type]


def paths(image_index: ImageIndex) -> list[str]:
    return [row.path for row in image_index.rows]


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        ({"window": "auto"}, "--window auto has no effect: no file is DICOM or NIfTI"),
        ({"frames": "middle"}, "--frames middle has no effect: no file or series holds several images"),
        ({"axis": "coronal"}, "--axis coronal has no effect: no file is NIfTI"),
        ({"volume": 0}, "--volume 0 has no effect: no file is NIfTI"),
    ],
)
def test_a_setting_of_formats_that_the_set_does_not_hold_is_told(
    settings: dict[str, object], note: str, tmp_path: Path
) -> None:
    for label, number in product("ab", range(2)):
        (tmp_path / label).mkdir(exist_ok=True)
        Image.new("L", (3, 3), number).save(tmp_path / label / f"{number}.png")
    (told,) = index(tmp_path, **settings).notes
    assert told.startswith(note)
    assert index(tmp_path).notes == ()


def test_a_setting_that_applies_to_some_files_is_not_told(source: Path, tmp_path: Path) -> None:
    notes = index(source, window="auto", frames="middle").notes
    assert not [note for note in notes if "no effect" in note]
    for series, number in product(range(4), range(3)):
        label = "ab"[series % 2]
        save_slices(tmp_path / "series" / label / f"{series}-{number}", series=str(series), position=number)
    assert index(tmp_path / "series", window="auto", frames="middle").notes == ()


def test_a_file_of_several_images_becomes_one_row_an_image_in_their_order(tmp_path: Path) -> None:
    for label in ("a", "b"):
        save_slices(tmp_path / label / "volume", 12)
    rows = index(tmp_path).rows
    assert [row.path for row in rows][:12] == [f"a/volume[{number}]" for number in range(12)]
    assert [row.image.frame for row in rows] == [*range(12)] * 2


@pytest.mark.parametrize(("frames", "taken"), [("all", [0, 1, 2, 3]), ("middle", [2]), ("1", [1])])
def test_frames_chooses_the_images_of_a_file(source: Path, frames: str, taken: list[int]) -> None:
    rows = [row for row in index(source, frames=frames).rows if "volume" in row.path]
    assert [row.path for row in rows] == [f"{label}/volume.xyz[{frame}]" for label in "ab" for frame in taken]


def test_a_frame_that_a_file_lacks_is_an_error_that_names_the_file_when_it_is_decoded(source: Path) -> None:
    image_index = index(source, frames="7")
    with pytest.raises(BrokenImageError, match=r"a/volume.xyz\[7\] \(the file has no frame 7 \(number of frames: 4\)"):
        load_image_store(image_index, image_size=4, max_megapixels=1, skip_broken=False)
    kept, _ = load_image_store(image_index, image_size=4, max_megapixels=1, skip_broken=True)
    assert len(kept.rows) == len(image_index.rows) - 2


def test_a_file_without_an_image_is_left_out_with_its_reason_and_a_note(source: Path) -> None:
    image_index = index(source)
    assert ("a/report", "holds no image: it is a report") in [(f.path, f.reason) for f in image_index.ignored]
    assert "1 file without an image, left out: 'a/report'" in image_index.notes


def test_a_source_without_any_image_is_an_error(tmp_path: Path) -> None:
    for label in ("a", "b"):
        save_slices(tmp_path / label / "report", 0)
    with pytest.raises(TwinbudError, match=r"none of the 2 files holds an image .*it is a report"):
        index(tmp_path)


def test_a_class_whose_files_hold_no_image_is_an_error(source: Path) -> None:
    save_slices(source / "c" / "report", 0)
    with pytest.raises(TwinbudError, match="'c' has 0"):
        index(source)


def test_what_a_header_warns_of_is_counted_once(tmp_path: Path) -> None:
    for number in range(4):
        save_slices(tmp_path / "ab"[number % 2] / str(number), burnt=number < 3)
    assert index(tmp_path).notes == ("3 files may show names",)


def test_files_are_found_by_content_in_folders_to_predict_too(source: Path) -> None:
    files, ignored = find_images([source])
    assert len(files) == 24
    assert ignored == ()


def test_frames_of_one_patient_are_on_one_side_of_the_split_whatever_the_file(source: Path) -> None:
    image_index = index(source)
    assert {row.patient_id for row in image_index.rows if "volume" in row.path} == {
        PatientSalt(None, str(source)).hashed("Doe^Jane")
    }
    digests = [str(number) for number in range(len(image_index.rows))]
    for seed in range(5):
        split = make_split(image_index, digests, DataConfig(split_seed=seed), seed=0)
        sides = [{image_index.rows[row].patient_id for row in part} - {None} for part in (split.train, split.test)]
        assert not sides[0] & sides[1]


def test_frames_of_unknown_patients_are_grouped_by_file_and_by_series(tmp_path: Path) -> None:
    for label in ("a", "b"):
        save_slices(tmp_path / label / "volume", 3)
        for number in range(3):
            save_slices(tmp_path / label / f"slice{number}", series="one" if label == "a" else "two")
    groups = {row.path: row.patient_id for row in index(tmp_path).rows}
    assert len({groups[f"a/slice{n}"] for n in range(3)}) == len({groups[f"a/volume[{n}]"] for n in range(3)}) == 1
    assert len(set(groups.values())) == 4


def test_a_number_that_no_series_of_files_reaches_is_refused(tmp_path: Path) -> None:
    for label, number in product("ab", range(3)):
        save_slices(tmp_path / label / f"{number}.dcm", series=label, position=number)
    said = (
        r"^--frames: '5' is too large: the series of '?a/0\.dcm'? has 3 images \(0 to 2\)\. "
        r"Give series of more images, or train with --frames 0 to 2, middle or all\.$"
    )
    with pytest.raises(TwinbudError, match=said):
        index(tmp_path, frames="5")


def test_the_middle_of_a_series_of_files_is_taken_by_position_not_by_name(tmp_path: Path) -> None:
    for label in ("a", "b"):
        for number in range(5):
            save_slices(tmp_path / label / str(number), series=label, position=[4, 1, 3, 0, 2][number])
        save_slices(tmp_path / label / "single")
    image_index = index(tmp_path, frames="middle")
    assert paths(image_index) == ["a/4", "a/single", "b/4", "b/single"]
    assert image_index.ignored[0].reason == "not image 2 of the 5 of its series (--frames middle)"


def write_csv(source: Path, *lines: str) -> Path:
    path = source / "labels.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_patients_of_a_csv_win_over_those_of_the_headers(source: Path) -> None:
    lines = [f"{label}/1.2.{n},{label},{'P7' if n == 0 else ''}" for label in "ab" for n in range(3)]
    image_index = index(write_csv(source, "image_path,label,patient_id", *lines))
    assert [row.patient_id for row in image_index.rows] == ["P7", None, None] * 2


def test_a_csv_without_patients_takes_those_of_the_headers(source: Path) -> None:
    lines = [f"{label}/1.2.{n},{label}" for label in "ab" for n in range(3)]
    rows = index(write_csv(source, "image_path,label", *lines)).rows
    assert all(is_key(row.patient_id) for row in rows)
    assert len({row.patient_id for row in rows}) == 6


def test_a_csv_may_name_frames_as_the_outputs_do(source: Path) -> None:
    lines = ["a/volume.xyz[3],a", "a/volume.xyz[0],a", "b/volume.xyz,b"]
    rows = index(write_csv(source, "image_path,label", *lines)).rows
    assert [(row.path, row.image.frame) for row in rows][:3] == [
        ("a/volume.xyz[0]", 0),
        ("a/volume.xyz[3]", 3),
        ("b/volume.xyz[0]", 0),
    ]
    with pytest.raises(TwinbudError, match=r"paths lead to no file: 'c/volume\.xyz\[1\]'"):
        read_csv_source(write_csv(source, "image_path,label", "c/volume.xyz[1],a"), DataConfig())


def test_a_row_for_a_frame_beside_one_for_its_whole_file_is_a_repetition_or_a_contradiction(source: Path) -> None:
    lines = ["image_path,label", "a/volume.xyz[2],a", "b/volume.xyz,b", "a/volume.xyz,a"]
    image_index = index(write_csv(source, *lines, "b/1.2.3,b", "b/1.2.3[0],b"))
    assert len(set(paths(image_index))) == len(image_index.rows) == 4 + 4 + 1
    assert [(file.path, file.reason) for file in image_index.ignored] == [
        ("a/volume.xyz[2]", "row 4 repeats row 2"),
        ("b/1.2.3[0]", "row 6 repeats row 5"),
    ]
    other = r"rows 2 and 5 give 'a/volume\.xyz\[2\]' a different label: 'a' and 'b'\. Drop the wrong row"
    with pytest.raises(TwinbudError, match=other):
        index(write_csv(source, *lines[:3], "b/1.2.3,b", "a/volume.xyz,b"))


def test_a_file_is_surveyed_once_for_all_rows_that_name_its_frames(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    surveyed = []
    read_survey = SlicesReader.survey

    def survey(reader: SlicesReader, file: BinaryIO, *, hashed: Callable[[str], str]) -> FileSurvey:
        surveyed.append(file)
        return read_survey(reader, file, hashed=hashed)

    monkeypatch.setattr(SlicesReader, "survey", survey)
    save_slices(source / "burnt", 4, burnt=True)
    lines = [f"burnt[{number}],{'ab'[number % 2]}" for number in range(4)]
    assert index(write_csv(source, "image_path,label", *lines)).notes == ("1 file may show names",)
    assert len(surveyed) == 1


def test_names_of_frames_survive_a_round_trip_through_split_csv(source: Path, tmp_path: Path) -> None:
    image_index = index(source)
    digests = [str(number) for number in range(len(image_index.rows))]
    split = make_split(image_index, digests, DataConfig(), seed=0)
    write_split(tmp_path / "split.csv", split.rows(image_index, digests))
    assert [split_frame_name(row.image_path) for row in read_split(tmp_path / "split.csv")] == [
        (row.image.file.relative_to(source).as_posix(), row.image.frame) for row in image_index.rows
    ]
    again = with_split_file(image_index, tmp_path / "split.csv")
    assert [row.split for row in again.rows].count("test") == len(split.test)


@pytest.mark.parametrize("name", ["scan.dcm", "odd[x].dcm", "odd[-1]", "a[01]", "[3]", "zero[ 1]"])
def test_a_name_without_a_frame_stays_a_path(name: str) -> None:
    assert split_frame_name(name) == (name, None)
    assert split_frame_name(frame_name(name, 12)) == (name, 12)


def test_a_file_named_like_the_frame_of_another_file_is_refused(source: Path) -> None:
    save_slices(source / "a" / "volume.xyz[2]")
    with pytest.raises(TwinbudError, match=r"also that of a frame of another file, 'a/volume\.xyz\[2\]'"):
        index(source)


def test_the_window_reaches_the_reader_and_is_refused_by_files_without_units(source: Path) -> None:
    assert {row.image.window for row in index(source).rows} == {None}
    image_index = index(source, window="lung")
    with pytest.raises(
        BrokenImageError, match="holds no values in physical units, to which the window lung could"
    ) as no:
        load_image_store(image_index, image_size=4, max_megapixels=1, skip_broken=False)
    assert (no.value.fix or "").startswith("Give CT images in Hounsfield units, or train without --window, ")
    file = source / "a" / "1.2.3"
    assert np.unique(read_image(file)).tolist() == [3]
    assert np.unique(read_image(file, window="lung")).tolist() == [4]


def test_read_image_asks_for_a_frame_where_a_file_has_several(source: Path) -> None:
    file = source / "a" / "volume.xyz"
    with pytest.raises(TwinbudError, match=r"holds 4 frames instead of a single image\. Name one, 0 to 3"):
        read_image(file)
    with pytest.raises(TwinbudError, match=r"has no frame 9 .*\. Name a frame of 0 to 3, or train") as caught:
        read_image(file, frame=9)
    assert "--skip-broken" not in str(caught.value), "nothing can be left out of a single image"
    assert read_image(file, frame=2)[0, 0].tolist() == [117] * 3


@pytest.mark.parametrize(
    ("text", "canonical"), [("40, 400.0", "40,400"), ("-600,1500", "-600,1500"), ("0.5,1e3", "0.5,1000"), ("auto",) * 2]
)
def test_a_window_has_one_spelling(text: str, canonical: str) -> None:
    assert canonical_window(text) == canonical
    assert DataConfig(window=text) == DataConfig(window=canonical)


@pytest.mark.parametrize("text", ["lungs", "40", "40,0", "40,-1", "a,b", "nan,1", "1,2,3", ""])
def test_another_window_is_refused_by_name(text: str) -> None:
    with pytest.raises(TwinbudError, match=r"^--window: "):
        DataConfig(window=text)
    assert "lung" in NAMED_WINDOWS


@pytest.mark.parametrize("text", ["first", "-1", "1.5", "1" * 12])
def test_other_frames_are_refused_by_name(text: str) -> None:
    with pytest.raises(TwinbudError, match=rf"^--frames: '{text}' is not one of all, middle, a number"):
        Reading(frames=text)


def test_the_salt_of_a_source_is_kept_and_that_of_another_source_differs(tmp_path: Path) -> None:
    keys = [PatientSalt(None, str(tmp_path / name)).hashed("Doe") for name in ("one", "one", "two")]
    assert keys[0] == keys[1] != keys[2]
    assert all(map(is_key, keys))
    assert default_salt_file(str(tmp_path / "one")).stat().st_mode & 0o077 == 0


def test_a_salt_that_is_given_must_exist_and_be_long_enough(tmp_path: Path) -> None:
    file = tmp_path / "salt"
    with pytest.raises(TwinbudError, match=r"^--patient-salt .*salt: the salt cannot be read \(No such file"):
        PatientSalt(file, "anywhere").hashed("Doe")
    file.write_text("short\n")
    with pytest.raises(TwinbudError, match="the salt has 5 bytes, fewer than 16"):
        PatientSalt(file, "anywhere").hashed("Doe")
    file.write_text("0123456789abcdef\n")
    assert PatientSalt(file, "here").hashed("Doe") == PatientSalt(file, "there").hashed("Doe")


def test_patients_of_different_salts_cannot_be_compared(tmp_path: Path) -> None:
    one, two = (PatientSalt(None, str(tmp_path / name)).hashed("Doe") for name in ("one", "two"))
    with pytest.raises(
        TwinbudError, match=r"^there: the patient ids are hashed with a different salt .* --patient-salt FILE"
    ):
        require_one_salt([one, None], [two], where="there")
    require_one_salt([one], [one, two, "P1"], where="there")
    require_one_salt(["P1"], [two], where="there")
