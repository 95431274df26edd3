"""Folders and CSVs become rows; what is arranged otherwise is one clear line."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
from PIL import Image

from twinbud.config.schema import DataConfig
from twinbud.core.errors import TwinbudError
from twinbud.data.index import IgnoredFile, ImageIndex
from twinbud.data.source import find_images, read_index


def make_images(root: Path, *paths: str) -> Path:
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(file, "PNG")
    return root


def make_csv(root: Path, text: str, *paths: str, encoding: str = "utf-8") -> Path:
    make_images(root, *paths)
    table = root / "labels.csv"
    table.write_text(text, encoding=encoding)
    return table


def catalog_of(path: Path, **settings: str | Path) -> ImageIndex:
    return read_index(DataConfig(data=str(path), **settings))  # type: ignore[arg-type]


def refusal(path: Path, **settings: str | Path) -> str:
    with pytest.raises(TwinbudError) as caught:
        catalog_of(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(path), "DATA")


FOUR = ("a/1.png", "a/2.png", "b/1.png", "b/2.png")
TABLE = "image_path,label\na/1.png,x\na/2.png,x\nb/1.png,y\nb/2.png,y\n"


def test_class_folders_become_rows_sorted_by_path(tmp_path: Path) -> None:
    image_index = catalog_of(make_images(tmp_path, "b/2.png", "b/1.JPG", "a/x.tiff", "a/deeper/still/1.png"))
    assert [(row.path, row.label) for row in image_index.rows] == [
        ("a/deeper/still/1.png", "a"),
        ("a/x.tiff", "a"),
        ("b/1.JPG", "b"),
        ("b/2.png", "b"),
    ]
    assert image_index.classes == ("a", "b")
    assert all(row.image.file == tmp_path / row.path for row in image_index.rows)
    assert not image_index.has_splits
    assert not image_index.has_patients


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("Training", "Validation", "Testing"), ("train", "val", "test"), ("TRAIN", "Valid", "Test")],
)
def test_kaggle_training_and_testing_are_splits_not_classes(tmp_path: Path, train: str, val: str, test: str) -> None:
    make_images(tmp_path, *(f"{split}/{path}" for split in (train, val, test) for path in FOUR))
    image_index = catalog_of(tmp_path)
    assert image_index.classes == ("a", "b")
    assert {(row.path.split("/")[0], row.split) for row in image_index.rows} == {
        (train, "train"),
        (val, "val"),
        (test, "test"),
    }


def test_split_folders_beside_other_folders_are_an_error(tmp_path: Path) -> None:
    make_images(tmp_path, "train/a/1.png", "test/a/1.png", "masks/1.png")
    assert refusal(tmp_path) == (
        "DATA: expected folders that are all splits or all classes, got 'test', 'train' (named like a split) beside "
        "'masks'. Move what is no split elsewhere, or rename the class folders."
    )


def test_what_is_no_image_is_listed_with_its_reason(tmp_path: Path) -> None:
    make_images(tmp_path, *FOUR, "a/.hidden.png", "a/._1.png", "a/.cache/1.png", "__MACOSX/a/1.png", "cover.png")
    for name in ("a/.DS_Store", "a/Thumbs.db", "b/notes.txt", "README.md", "b/scan.dcm"):
        (tmp_path / name).touch()
    image_index = catalog_of(tmp_path)
    assert [row.path for row in image_index.rows] == list(FOUR)
    reasons = {file.path: file.reason for file in image_index.ignored}
    hidden = {"a/.hidden.png", "a/._1.png", "a/.cache/1.png", "__MACOSX/a/1.png", "a/.DS_Store", "a/Thumbs.db"}
    assert {path for path, reason in reasons.items() if reason == "hidden or made by the system"} == hidden
    assert reasons["cover.png"] == "not in a class folder"
    for name in ("b/notes.txt", "README.md", "b/scan.dcm"):
        assert reasons[name].startswith("no image by its ending (.bmp, .jpeg")
    assert len(reasons) == len(image_index.ignored) == 10


def test_images_directly_in_a_split_folder_are_listed(tmp_path: Path) -> None:
    make_images(tmp_path, *(f"{split}/{path}" for split in ("train", "test") for path in FOUR), "train/loose.png")
    assert catalog_of(tmp_path).ignored == (IgnoredFile(path="train/loose.png", reason="not in a class folder"),)


def test_a_link_back_to_a_folder_above_is_not_followed_for_ever(tmp_path: Path) -> None:
    make_images(tmp_path, *FOUR)
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert len(catalog_of(tmp_path).rows) == 4


def test_a_missing_path_is_an_error(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == (
        "--data DATA: expected a folder, a CSV or 'phantom', got a path where there is nothing. Check --data."
    )


def test_a_path_that_cannot_be_is_an_error_that_shows_its_beginning(tmp_path: Path) -> None:
    line = refusal(tmp_path / ("x" * 5000))
    assert len(line) < 250
    assert "got File name too long. Check --data." in line
    assert refusal(Path("~nobody-of-that-name/images")).startswith("--data DATA: expected a folder")


def test_a_name_that_is_no_utf_8_is_shown_with_escapes(tmp_path: Path) -> None:
    make_images(tmp_path, *FOUR, "a/caf\udce9.png", "b/na\udcefve.png")
    line = refusal(tmp_path)
    assert line.startswith("a/caf\\udce9.png, b/na\\udcefve.png: expected file names in UTF-8, got 2 in other bytes.")
    with pytest.raises(TwinbudError, match=r"caf\\udce9\.png: expected file names in UTF-8"):
        find_images([tmp_path / "a"])


def test_a_folder_or_a_class_that_is_no_utf_8_is_an_error_and_a_file_left_out_is_not(tmp_path: Path) -> None:
    good = make_images(tmp_path / "good", *FOUR)
    (good / "a" / "caf\udce9.txt").touch()
    assert [file.path for file in catalog_of(good).ignored] == ["a/caf\\udce9.txt"]
    assert "expected file names in UTF-8" in refusal(make_images(tmp_path / "caf\udce9", *FOUR))
    assert "expected file names in UTF-8" in refusal(make_images(tmp_path / "x", *FOUR, "\udce9/1.png", "\udce9/2.png"))


def test_a_file_of_another_kind_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.zip").touch()
    assert "expected a folder, a CSV or 'phantom', got a .zip file." in refusal(tmp_path / "x.zip")


LAYOUTS = "Arrange the images as FOLDER/CLASS/image.png, FOLDER/train/CLASS/image.png with FOLDER/test/CLASS"


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    assert f"DATA: expected a folder of class folders, got an empty folder. {LAYOUTS}" in refusal(tmp_path)


def test_images_without_class_folders_are_an_error(tmp_path: Path) -> None:
    assert f"got 2 images in no class folder. {LAYOUTS}" in refusal(make_images(tmp_path, "1.png", "2.png"))


def test_files_without_any_image_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    assert f"got no image among 1 files. {LAYOUTS}" in refusal(tmp_path)


def test_split_folders_without_class_folders_are_an_error(tmp_path: Path) -> None:
    assert "got 2 images in no class folder" in refusal(make_images(tmp_path, "train/1.png", "test/1.png"))


def test_class_folders_that_hold_only_folders_are_an_error(tmp_path: Path) -> None:
    make_images(tmp_path, *(f"site/{path}" for path in FOUR), *(f"other/{path}" for path in FOUR))
    assert f"got only folders in 'other', 'site'. {LAYOUTS}" in refusal(tmp_path)


def test_class_folders_that_hold_only_empty_folders_are_an_error(tmp_path: Path) -> None:
    for name in ("a/deep", "b/deep"):
        (tmp_path / name).mkdir(parents=True)
    assert f"expected images in each class folder, got none in 'a', 'b'. {LAYOUTS}" in refusal(tmp_path)


def test_a_class_folder_without_images_is_an_error(tmp_path: Path) -> None:
    (make_images(tmp_path, *FOUR) / "c").mkdir()
    assert "expected images in each class folder, got none in 'c'." in refusal(tmp_path)


def test_one_class_only_is_an_error(tmp_path: Path) -> None:
    make_images(tmp_path, "a/1.png", "a/2.png")
    assert "DATA: expected at least two classes, got one, 'a'." in refusal(tmp_path)


def test_a_class_with_a_single_image_is_an_error(tmp_path: Path) -> None:
    make_images(tmp_path, *FOUR, "c/1.png")
    assert refusal(tmp_path) == (
        "DATA: expected at least two images a class (one to train on, one to test on), got 'c' with 1. "
        "Add images, or take the class out."
    )


def test_a_given_split_whose_test_part_has_an_unknown_class_is_an_error(tmp_path: Path) -> None:
    make_images(tmp_path, *(f"train/{path}" for path in FOUR), "test/a/1.png", "test/B/1.png", "test/B/2.png")
    assert "expected no class in the test part that the train part lacks, got 'B'." in refusal(tmp_path)


def test_a_given_split_without_a_train_part_is_an_error(tmp_path: Path) -> None:
    make_images(tmp_path, *(f"test/{path}" for path in FOUR))
    assert "DATA: expected a train part, got only test." in refusal(tmp_path)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv_separators_and_byte_order_mark_are_understood(tmp_path: Path, separator: str, encoding: str) -> None:
    text = "image_path,label,patient_id,split\r\na/1.png, x ,007,Training\r\na/2.png,x,008,TEST\r\n"
    text += "b/1.png,nan,1e5,train\r\n\r\nb/2.png,nan,,test\r\n"
    image_index = catalog_of(make_csv(tmp_path, text.replace(",", separator), *FOUR, encoding=encoding))
    assert [(row.path, row.label, row.patient_id, row.split) for row in image_index.rows] == [
        ("a/1.png", "x", "007", "train"),
        ("a/2.png", "x", "008", "test"),
        ("b/1.png", "nan", "1e5", "train"),
        ("b/2.png", "nan", None, "test"),
    ]
    assert image_index.classes == ("nan", "x")
    assert image_index.has_patients
    assert image_index.has_splits
    assert all(row.image.file.is_file() for row in image_index.rows)


def test_csv_columns_have_the_names_they_are_given(tmp_path: Path) -> None:
    table = make_csv(tmp_path, TABLE.replace("image_path,label", "File,Diagnosis"), *FOUR)
    image_index = catalog_of(table, image_column="File", label_column="Diagnosis")
    assert image_index.classes == ("x", "y")
    assert refusal(table) == (
        "DATA: expected the columns 'image_path', 'label', each once, got 'File', 'Diagnosis'. "
        "Rename them, or say --image-column and --label-column."
    )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("a/2.png,x", "a/2.png,", "DATA, row 3: expected a value in 'label', got a blank. Fill it in or drop the row."),
        ("a/2.png,x", " ,x", "DATA, row 3: expected a value in 'image_path', got a blank."),
        ("a/2.png", "./a/1.png", "DATA, row 3: expected each image once, got './a/1.png' in row 2 already."),
        ("a/2.png,x", "a/2.png,x,y", "DATA, row 3: expected 2 cells, as in the header, got 3."),
        ("b/2.png", "b/9.png", "got 1 of 4 where there is no file: b/9.png. Correct the paths."),
        ("image_path,label", "image_path,label,label", "expected the columns 'image_path', 'label', each once, got"),
    ],
)
def test_a_wrong_cell_is_named_with_its_row(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert expected in refusal(make_csv(tmp_path, TABLE.replace(old, new), *FOUR))


def test_unknown_paths_are_the_first_few_and_their_number(tmp_path: Path) -> None:
    message = refusal(make_csv(tmp_path, TABLE))
    assert "column 'image_path': expected paths of images, relative to" in message
    assert "got 4 of 4 where there is no file: a/1.png, a/2.png, b/1.png and 1 more." in message


def test_a_csv_of_a_header_only_is_an_error(tmp_path: Path) -> None:
    assert "DATA: expected a row an image, got a header only." in refusal(make_csv(tmp_path, "image_path,label\n"))


def test_an_empty_csv_is_an_error(tmp_path: Path) -> None:
    assert "expected the columns 'image_path', 'label', each once, got none." in refusal(make_csv(tmp_path, ""))


def test_a_csv_in_another_encoding_is_an_error(tmp_path: Path) -> None:
    assert re.search(
        r"expected a CSV in UTF-8, got a file that is none .* Save it as 'CSV UTF-8'\.",
        refusal(make_csv(tmp_path, TABLE, *FOUR, encoding="utf-16")),
    )


def split_table(*rows: str) -> str:
    return "\n".join(["image_path,label,patient_id,split", *rows])


def test_an_unknown_split_word_is_named_with_its_row_and_the_valid_ones(tmp_path: Path) -> None:
    table = make_csv(tmp_path, split_table("a/1.png,x,1,train", "a/2.png,x,2,holdout"), *FOUR)
    assert refusal(table) == (
        "DATA, row 3, 'split': expected one of train, training, val, valid, validation, test, testing, "
        "got 'holdout'. Correct the word."
    )


def test_a_split_for_some_rows_only_is_an_error(tmp_path: Path) -> None:
    table = make_csv(tmp_path, split_table("a/1.png,x,1,train", "a/2.png,x,2,"), *FOUR)
    assert "column 'split': expected train, val or test in each row, or in none, got a blank in row 3." in refusal(
        table
    )


PATIENT_ON_BOTH_SIDES = split_table("a/1.png,x,1,train", "a/2.png,x,1,test", "b/1.png,y,2,train", "b/2.png,y,3,test")


def test_a_patient_on_both_sides_of_a_given_split_is_an_error(tmp_path: Path) -> None:
    assert refusal(make_csv(tmp_path, PATIENT_ON_BOTH_SIDES, *FOUR)) == (
        "DATA: expected each patient on one side of the given split, got '1' in test and train. "
        "Move all images of a patient to one side, or leave the split to twinbud."
    )


def test_a_split_file_wins_over_a_wrong_split_in_the_data(tmp_path: Path) -> None:
    table = make_csv(tmp_path, PATIENT_ON_BOTH_SIDES, *FOUR)
    assert len(catalog_of(table, split=tmp_path / "split.csv").rows) == 4


def test_phantom_is_read_from_its_own_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "image_path,label,patient_id\na/1.png,x,p\na/2.png,x,p\nb/1.png,y,q\nb/2.png,y,r\n"
    make_csv(tmp_path, text, *FOUR)
    phantom = types.ModuleType("twinbud.data.phantom")
    phantom.phantom_folder = lambda: tmp_path  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "twinbud.data.phantom", phantom)
    image_index = read_index(DataConfig(data="phantom", label_column="elsewhere"))
    assert image_index.source == "phantom"
    assert image_index.has_patients
    assert len(image_index.rows) == 4


def test_images_to_predict_are_files_and_folders_each_file_once(tmp_path: Path) -> None:
    make_images(tmp_path, "set/b/2.png", "set/1.png", "odd.name")
    (tmp_path / "set" / "notes.txt").touch()
    files, ignored = find_images([tmp_path / "odd.name", tmp_path / "set" / "b" / "2.png", tmp_path / "set"])
    assert files == (tmp_path / "odd.name", tmp_path / "set" / "b" / "2.png", tmp_path / "set" / "1.png")
    assert [Path(file.path).name for file in ignored] == ["notes.txt"]


def test_a_missing_path_to_predict_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TwinbudError, match=r"none: expected an image or a folder, got a path where there is nothing\."):
        find_images([tmp_path / "none"])


def test_nothing_to_predict_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TwinbudError, match=r"expected images \(\.bmp.* got an empty folder"):
        find_images([tmp_path])
    (tmp_path / "a.txt").touch()
    with pytest.raises(TwinbudError, match=r"got none among 1 files"):
        find_images([tmp_path])
