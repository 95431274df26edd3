"""Folders and CSVs become rows; what is arranged otherwise is one clear line."""

from __future__ import annotations

import csv
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from timm.data.readers.reader_image_folder import ReaderImageFolder

from twinbud.config.data_config import DataConfig
from twinbud.core.errors import TwinbudError
from twinbud.data.identity import visible_text
from twinbud.data.index import IgnoredFile, ImageIndex, unknown_labels
from twinbud.data.source import find_images, read_index, read_unlabelled_index


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


def index_of(path: Path, **settings: str | Path) -> ImageIndex:
    return read_index(DataConfig(data=str(path), **settings))  # type: ignore[arg-type]


def refusal(path: Path, **settings: str | Path) -> str:
    with pytest.raises(TwinbudError) as caught:
        index_of(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(path), "DATA")


FOUR = ("a/1.png", "a/2.png", "b/1.png", "b/2.png")
TABLE = "image_path,label\na/1.png,x\na/2.png,x\nb/1.png,y\nb/2.png,y\n"


def test_class_folders_become_rows_sorted_by_path(tmp_path: Path) -> None:
    image_index = index_of(make_images(tmp_path, "b/2.png", "b/1.JPG", "a/x.tiff", "a/deeper/still/1.png"))
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
    image_index = index_of(tmp_path)
    assert image_index.classes == ("a", "b")
    assert {(row.path.split("/")[0], row.split) for row in image_index.rows} == {
        (train, "train"),
        (val, "val"),
        (test, "test"),
    }


def test_split_folders_beside_other_folders_are_an_error(tmp_path: Path) -> None:
    make_images(tmp_path, "train/a/1.png", "test/a/1.png", "masks/1.png")
    assert refusal(tmp_path) == (
        "DATA: split folders ('test', 'train') are mixed with other folders ('masks'). "
        "Move the other folders elsewhere, or rename class folders that are named like a split."
    )


def test_what_is_no_image_is_listed_with_its_reason(tmp_path: Path) -> None:
    make_images(tmp_path, *FOUR, "a/.hidden.png", "a/._1.png", "a/.cache/1.png", "__MACOSX/a/1.png", "cover.png")
    for name in ("a/.DS_Store", "a/Thumbs.db", "b/notes.txt", "README.md", "b/scan.dcm"):
        (tmp_path / name).touch()
    image_index = index_of(tmp_path)
    assert [row.path for row in image_index.rows] == list(FOUR)
    reasons = {file.path: file.reason for file in image_index.ignored}
    hidden = {"a/.hidden.png", "a/._1.png", "a/.cache/1.png", "__MACOSX/a/1.png", "a/.DS_Store", "a/Thumbs.db"}
    assert {path for path, reason in reasons.items() if reason == "hidden or made by the system"} == hidden
    assert reasons["cover.png"] == "not in a class folder"
    for name in ("b/notes.txt", "README.md", "b/scan.dcm"):
        assert reasons[name].startswith("not an image by its suffix (.bmp, .jpeg")
    assert len(reasons) == len(image_index.ignored) == 10


def test_images_directly_in_a_split_folder_are_listed(tmp_path: Path) -> None:
    make_images(tmp_path, *(f"{split}/{path}" for split in ("train", "test") for path in FOUR), "train/loose.png")
    assert index_of(tmp_path).ignored == (IgnoredFile(path="train/loose.png", reason="not in a class folder"),)


def test_a_link_back_to_a_folder_above_is_not_followed_for_ever(tmp_path: Path) -> None:
    make_images(tmp_path, *FOUR)
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    image_index = index_of(tmp_path)
    assert len(image_index.rows) == 4
    assert image_index.ignored == (IgnoredFile(path="a/loop", reason="a link to a folder that contains it"),)


def test_a_missing_path_is_an_error(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == (
        "--data DATA: there is no such file or folder. Give a folder of class folders, a CSV, or a set by name "
        "('twinbud datasets' lists them)."
    )


def test_a_path_that_cannot_be_is_an_error_that_shows_its_beginning(tmp_path: Path) -> None:
    line = refusal(tmp_path / ("x" * 5000))
    assert len(line) < 250
    assert "file name too long. Give a folder" in line
    assert refusal(Path("~nobody-of-that-name/images")).startswith("--data DATA: there is no such file or folder.")


def test_a_name_that_is_no_utf_8_is_shown_with_escapes(tmp_path: Path) -> None:
    make_images(tmp_path, *FOUR, "a/caf\udce9.png", "b/na\udcefve.png")
    line = refusal(tmp_path)
    assert line.startswith("a/caf\\udce9.png, b/na\\udcefve.png: 2 file names are not UTF-8.")
    with pytest.raises(TwinbudError, match=r"caf\\udce9\.png: 1 file name is not UTF-8"):
        find_images([tmp_path / "a"])


def test_a_folder_or_a_class_that_is_no_utf_8_is_an_error_and_a_file_left_out_is_not(tmp_path: Path) -> None:
    good = make_images(tmp_path / "good", *FOUR)
    (good / "a" / "caf\udce9.txt").touch()
    assert [file.path for file in index_of(good).ignored] == ["a/caf\\udce9.txt"]
    assert "1 file name is not UTF-8" in refusal(make_images(tmp_path / "caf\udce9", *FOUR))
    assert "2 file names are not UTF-8" in refusal(make_images(tmp_path / "x", *FOUR, "\udce9/1.png", "\udce9/2.png"))


def test_a_file_of_another_kind_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.zip").touch()
    assert "'.zip' files are not supported as a list of images. Give a folder of class folders, a CSV" in refusal(
        tmp_path / "x.zip"
    )


LAYOUTS = "Arrange the images as FOLDER/CLASS/image.png, FOLDER/train/CLASS/image.png with FOLDER/test/CLASS"


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    assert f"DATA: the folder is empty. {LAYOUTS}" in refusal(tmp_path)


def test_images_without_class_folders_are_an_error(tmp_path: Path) -> None:
    assert f"2 images are in no class folder. {LAYOUTS}" in refusal(make_images(tmp_path, "1.png", "2.png"))


def test_files_without_any_image_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    assert f"none of 1 files is an image. {LAYOUTS}" in refusal(tmp_path)


def test_split_folders_without_class_folders_are_an_error(tmp_path: Path) -> None:
    assert "2 images are in no class folder" in refusal(make_images(tmp_path, "train/1.png", "test/1.png"))


def test_class_folders_that_hold_only_folders_are_an_error(tmp_path: Path) -> None:
    make_images(tmp_path, *(f"site/{path}" for path in FOUR), *(f"other/{path}" for path in FOUR))
    assert f"class folders that hold folders instead of images: 'other', 'site'. {LAYOUTS}" in refusal(tmp_path)


def test_class_folders_that_hold_only_empty_folders_are_an_error(tmp_path: Path) -> None:
    for name in ("a/deep", "b/deep"):
        (tmp_path / name).mkdir(parents=True)
    assert f"class folders without images: 'a', 'b'. {LAYOUTS}" in refusal(tmp_path)


def test_a_class_folder_without_images_is_an_error(tmp_path: Path) -> None:
    (make_images(tmp_path, *FOUR) / "c").mkdir()
    assert "class folders without images: 'c'." in refusal(tmp_path)


def test_one_class_only_is_an_error(tmp_path: Path) -> None:
    make_images(tmp_path, "a/1.png", "a/2.png")
    assert "DATA: all images are of one class, 'a'; training needs at least two classes." in refusal(tmp_path)


def test_a_class_with_a_single_image_is_an_error(tmp_path: Path) -> None:
    make_images(tmp_path, *FOUR, "c/1.png")
    assert refusal(tmp_path) == (
        "DATA: every class needs at least two images, one to train on and one to test on: 'c' has 1. "
        "Add images, or take the class out."
    )


def test_a_given_split_whose_test_part_has_an_unknown_class_is_an_error(tmp_path: Path) -> None:
    make_images(tmp_path, *(f"train/{path}" for path in FOUR), "test/a/1.png", "test/c/1.png", "test/c/2.png")
    assert (
        "the test part has classes that the train part lacks: 'c'. Use the same class names in all parts, or move"
        in refusal(tmp_path)
    )


def test_a_given_split_without_a_train_part_is_an_error(tmp_path: Path) -> None:
    make_images(tmp_path, *(f"test/{path}" for path in FOUR))
    assert "DATA: the given split has no train part, only test." in refusal(tmp_path)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv_separators_and_byte_order_mark_are_understood(tmp_path: Path, separator: str, encoding: str) -> None:
    text = "image_path,label,patient_id,split\r\na/1.png, x ,007,Training\r\na/2.png,x,008,TEST\r\n"
    text += "b/1.png,y,1e5,train\r\n\r\nb/2.png,y,,test\r\n"
    image_index = index_of(make_csv(tmp_path, text.replace(",", separator), *FOUR, encoding=encoding))
    assert [(row.path, row.label, row.patient_id, row.split) for row in image_index.rows] == [
        ("a/1.png", "x", "007", "train"),
        ("a/2.png", "x", "008", "test"),
        ("b/1.png", "y", "1e5", "train"),
        ("b/2.png", "y", None, "test"),
    ]
    assert image_index.classes == ("x", "y")
    assert image_index.has_patients
    assert image_index.has_splits
    assert all(row.image.file.is_file() for row in image_index.rows)


def test_csv_columns_have_the_names_they_are_given(tmp_path: Path) -> None:
    table = make_csv(tmp_path, TABLE.replace("image_path,label", "File,Diagnosis"), *FOUR)
    image_index = index_of(table, image_column="File", label_column="Diagnosis")
    assert image_index.classes == ("x", "y")
    assert refusal(table) == (
        "DATA: missing columns: 'image_path', 'label' (the header has 'File', 'Diagnosis'). "
        "Rename the columns, or name them with --image-column and --label-column."
    )


@pytest.mark.parametrize("kind", ["image", "label", "patient", "split"])
def test_a_missing_column_is_told_of_the_option_that_names_it(tmp_path: Path, kind: str) -> None:
    assert refusal(make_csv(tmp_path, TABLE, *FOUR), **{f"{kind}_column": "pid"}) == (
        f"--{kind}-column: 'pid' is not a column of DATA (it has 'image_path', 'label'). "
        "Give one of these, or leave the option out."
    )


@pytest.mark.parametrize("data", ["images", "phantom"])
@pytest.mark.parametrize("read", [read_index, read_unlabelled_index])
@pytest.mark.parametrize("column", ["image_column", "label_column", "label_columns", "patient_column", "split_column"])
def test_a_column_of_a_source_without_columns_is_refused(
    data: str, read: Callable[[DataConfig], ImageIndex], column: str, tmp_path: Path
) -> None:
    place = str(make_images(tmp_path, *FOUR)) if data == "images" else data
    with pytest.raises(TwinbudError) as caught:
        read(DataConfig(data=place, **{column: "who"}))  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"--{column.replace('_', '-')}: 'who' has no effect: '{place}' is not a CSV and has no columns. "
        "Leave the option out."
    )


def test_a_csv_of_one_class_is_told_how_to_get_a_second_one(tmp_path: Path) -> None:
    assert refusal(make_csv(tmp_path, TABLE.replace(",y", ",x"), *FOUR)) == (
        "DATA: all images are of one class, 'x'; training needs at least two classes. "
        "Add images of a second class, or name the column with the classes: --label-column."
    )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("a/2.png,x", "a/2.png,", "DATA, row 3: column 'label' is blank. Fill it in or drop the row."),
        ("a/2.png,x", " ,x", "DATA, row 3: column 'image_path' is blank."),
        ("a/2.png,x", "a/2.png,x,y", "DATA, row 3: the row has 3 cells, the header has 2. Put quotes around"),
        ("a/2.png,x", "a/2.png", "DATA, row 3: the row has 1 cells, the header has 2. Add the missing cells."),
        ("b/2.png", "b/9.png", "column 'image_path': 1 of 4 paths lead to no file: 'b/9.png'. Write paths relative to"),
        ("image_path,label", "image_path,label,label", "columns that appear more than once: 'label'."),
    ],
)
def test_a_wrong_cell_is_named_with_its_row(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert expected in refusal(make_csv(tmp_path, TABLE.replace(old, new), *FOUR))


def test_unknown_paths_are_the_first_few_and_their_number(tmp_path: Path) -> None:
    message = refusal(make_csv(tmp_path, TABLE))
    assert "column 'image_path': 4 of 4 paths lead to no file: 'a/1.png', 'a/2.png', 'b/1.png' and 1 more." in message


def test_a_csv_of_a_header_only_is_an_error(tmp_path: Path) -> None:
    assert "DATA: the CSV has a header and no rows." in refusal(make_csv(tmp_path, "image_path,label\n"))


def test_an_empty_csv_is_an_error(tmp_path: Path) -> None:
    assert "DATA: the file is empty. Give a CSV with the columns 'image_path', 'label'." in refusal(
        make_csv(tmp_path, "")
    )


def test_a_csv_in_another_encoding_is_an_error(tmp_path: Path) -> None:
    assert re.search(
        r"the file is not UTF-8 \(.*\)\. Save it as 'CSV UTF-8'\.",
        refusal(make_csv(tmp_path, TABLE, *FOUR, encoding="utf-16")),
    )


def split_table(*rows: str) -> str:
    return "\n".join(["image_path,label,patient_id,split", *rows])


def test_an_unknown_split_word_is_named_with_its_row_and_the_valid_ones(tmp_path: Path) -> None:
    table = make_csv(tmp_path, split_table("a/1.png,x,1,train", "a/2.png,x,2,holdout"), *FOUR)
    assert refusal(table) == (
        "DATA, row 3, column 'split': 'holdout' is not the name of a part. "
        "Write one of train, training, val, valid, validation, test, testing."
    )


def test_a_split_for_some_rows_only_is_an_error(tmp_path: Path) -> None:
    table = make_csv(tmp_path, split_table("a/1.png,x,1,train", "a/2.png,x,2,"), *FOUR)
    assert "column 'split': some rows have a split and others do not: blank in row 3." in refusal(table)


PATIENT_ON_BOTH_SIDES = split_table("a/1.png,x,1,train", "a/2.png,x,1,test", "b/1.png,y,2,train", "b/2.png,y,3,test")


def test_a_patient_on_both_sides_of_a_given_split_is_an_error(tmp_path: Path) -> None:
    assert refusal(make_csv(tmp_path, PATIENT_ON_BOTH_SIDES, *FOUR)) == (
        "DATA: the given split has patients in more than one part: '1' in test and train. "
        "Move all images of a patient to one part, or remove the split column."
    )


def test_a_split_file_wins_over_a_wrong_split_in_the_data(tmp_path: Path) -> None:
    table = make_csv(tmp_path, PATIENT_ON_BOTH_SIDES, *FOUR)
    assert len(index_of(table, split=tmp_path / "split.csv").rows) == 4


def test_phantom_is_read_from_its_own_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "image_path,label,patient_id\na/1.png,x,p\na/2.png,x,p\nb/1.png,y,q\nb/2.png,y,r\n"
    make_csv(tmp_path, text, *FOUR)
    phantom = types.ModuleType("twinbud.data.phantom")
    phantom.phantom_folder = lambda: tmp_path  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "twinbud.data.phantom", phantom)
    image_index = read_index(DataConfig(data="phantom"))
    assert image_index.source == "phantom"
    assert image_index.has_patients
    assert len(image_index.rows) == 4


def test_images_to_predict_are_files_and_folders_each_path_once(tmp_path: Path) -> None:
    make_images(tmp_path, "set/b/2.png", "set/1.png", "odd.name")
    (tmp_path / "set" / "notes.txt").touch()
    files, ignored = find_images([tmp_path / "odd.name", tmp_path / "set" / "b" / "2.png", tmp_path / "set"])
    assert files == (tmp_path / "odd.name", tmp_path / "set" / "b" / "2.png", tmp_path / "set" / "1.png")
    assert {Path(file.path).name: file.reason.split(" (")[0] for file in ignored} == {
        "2.png": f"given already as {tmp_path / 'set' / 'b' / '2.png'}",
        "notes.txt": "not an image by its suffix",
    }


def test_a_missing_path_to_predict_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TwinbudError, match=r"none: there is no such file or folder\. Give images"):
        find_images([tmp_path / "none"])


def test_nothing_to_predict_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TwinbudError, match=r"the folder is empty\. Give images \(\.bmp"):
        find_images([tmp_path])
    (tmp_path / "a.txt").touch()
    with pytest.raises(TwinbudError, match=r"none of 1 files is an image"):
        find_images([tmp_path])


SPELLINGS = [
    ("Glioma", "glioma"),
    ("glioma", "gliom\u200ba"),
    ("l\xe9sion", "le\u0301sion"),
    ("no  tumour", "no_tumour"),
    ("1", "1.0"),
    ("01", "1"),
    ("glioma", "glioma."),
]


def labelled(*labels: str) -> str:
    return "image_path,label\n" + "".join(f"{path},{label}\n" for path, label in zip(FOUR, labels, strict=True))


@pytest.mark.parametrize(("one", "two"), SPELLINGS)
def test_labels_that_differ_only_in_spelling_are_an_error_with_their_rows(tmp_path: Path, one: str, two: str) -> None:
    line = refusal(make_csv(tmp_path, labelled(one, two, "z", one), *FOUR))
    assert line.startswith("DATA: labels differ only in spelling: '")
    assert "(rows 2, 5)" in line
    assert "(row 3)" in line
    assert f"Write {visible_text(one)} for all of them" in line
    assert index_of(make_csv(tmp_path, labelled(one, one, "z", "z"), *FOUR)).classes  # as the error advises


@pytest.mark.parametrize(("one", "two"), [("Glioma", "glioma"), (" glioma", "glioma"), ("glioma.", "glioma")])
def test_class_folders_that_differ_only_in_spelling_are_an_error(tmp_path: Path, one: str, two: str) -> None:
    line = refusal(make_images(tmp_path, *(f"{name}/{number}.png" for name in (one, two, "z") for number in "12")))
    assert line.startswith("DATA: labels differ only in spelling: '")
    assert f"'{one}' ('{one}/1.png and 1 more)" in line.replace("1.png'", "1.png")


@pytest.mark.parametrize("label", ["nan", "NaN", "NA", "<NA>", "null", "None", "N/A"])
def test_a_label_that_stands_for_a_missing_value_is_an_error(tmp_path: Path, label: str) -> None:
    line = refusal(make_csv(tmp_path, labelled(label, label, "z", "z"), *FOUR))
    assert line == (
        f"DATA: labels that stand for a missing value: '{label}' (rows 2, 3). Fill in the labels or drop the images; "
        "rename a class of that name, for example to 'no finding'."
    )
    assert index_of(make_csv(tmp_path, labelled("no finding", "no finding", "z", "z"), *FOUR))


def test_respelled_labels_can_be_evaluated_and_are_named_beside_the_models_own(tmp_path: Path) -> None:
    table = make_csv(tmp_path, labelled("Glioma", "glioma", "nan", "zebra"), *FOUR)
    rows = read_index(DataConfig(data=str(table)), to_train=False).rows
    assert unknown_labels(rows, ["glioma", "nan"]) == ["'Glioma' (the model spells it 'glioma')", "'zebra'"]


def test_two_links_and_a_link_to_a_folder_are_images_of_their_own(tmp_path: Path) -> None:
    store = make_images(tmp_path / "store", "a/1.png", "a/2.png")
    view = tmp_path / "view"
    for name in "ab":
        (view / name).mkdir(parents=True)
        for number in "123":
            (view / name / f"{number}.png").symlink_to(store / "a" / "1.png")
    (view / "b" / "more").symlink_to(store / "a", target_is_directory=True)
    assert [row.path for row in index_of(view).rows] == [
        *(f"a/{number}.png" for number in "123"),
        *(f"b/{number}.png" for number in "123"),
        "b/more/1.png",
        "b/more/2.png",
    ]
    files, ignored = find_images([view])
    assert len(files) == 8
    assert not ignored


def test_hard_links_and_links_in_a_csv_are_rows_of_their_own(tmp_path: Path) -> None:
    table = make_csv(tmp_path, labelled("x", "x", "y", "y"), "a/1.png", "b/1.png")
    (tmp_path / "a" / "2.png").hardlink_to(tmp_path / "a" / "1.png")
    (tmp_path / "b" / "2.png").symlink_to("1.png")
    assert len(index_of(table).rows) == 4


@pytest.mark.parametrize("again", ["a/1.png", "./a/1.png", "b/../a/1.png", "a//1.png", "ABSOLUTE"])
def test_a_row_that_repeats_another_is_listed_and_one_that_contradicts_it_is_an_error(
    tmp_path: Path, again: str
) -> None:
    again = str(tmp_path / "a" / "1.png") if again == "ABSOLUTE" else again
    table = make_csv(tmp_path, labelled("x", "x", "y", "y") + f"{again},x\n", *FOUR)
    image_index = index_of(table)
    assert [row.path for row in image_index.rows] == list(FOUR)
    assert image_index.ignored == (IgnoredFile(path=again, reason="row 6 repeats row 2"),)
    line = refusal(make_csv(tmp_path, labelled("x", "x", "y", "y") + f"{again},y\n", *FOUR))
    assert line == f"DATA: rows 2 and 6 give '{again}' a different label: 'x' and 'y'. Drop the wrong row."


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [("x,1,train", "x,2,train", "patient"), ("x,1,train", "x,1,test", "split"), ("x,1,train", "x,,train", "patient")],
)
def test_a_repeated_row_with_another_patient_or_part_is_an_error(
    tmp_path: Path, first: str, second: str, word: str
) -> None:
    rows = [f"a/1.png,{first}", f"a/1.png,{second}", "b/1.png,y,3,train", "b/2.png,y,4,test"]
    assert f"rows 2 and 3 give 'a/1.png' a different {word}: " in refusal(make_csv(tmp_path, split_table(*rows), *FOUR))


def test_a_patient_id_that_stands_for_a_missing_value_is_no_patient(tmp_path: Path) -> None:
    text = "image_path,label,patient_id\na/1.png,x,nan\na/2.png,x,unknown\nb/1.png,y,\nb/2.png,y,001\n"
    assert [row.patient_id for row in index_of(make_csv(tmp_path, text, *FOUR)).rows] == [None, None, None, "001"]


@pytest.mark.parametrize("name", ["im\r0.png", "a\nb.png", " a.png", "a,b;c.png", 'say "x".png', "=1+1.png", "label"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_odd_names_are_found_in_a_csv(tmp_path: Path, name: str, quoting: Any) -> None:
    paths = [f"{folder}/{stem}" for folder in "ab" for stem in (name, "2.png")] + [name]
    make_images(tmp_path, *paths)
    with (tmp_path / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, quoting=quoting)
        rows.writerows([("image_path", "label"), *((path, "xy"[place % 2]) for place, path in enumerate(paths))])
    assert {row.path for row in index_of(tmp_path / "labels.csv").rows} == set(paths)


def test_classes_of_a_folder_and_of_a_csv_are_in_the_order_of_timm(tmp_path: Path) -> None:
    names = ("covid", "grade9", "grade10", "Normal", "Pneumonia")
    paths = [f"{name}/{number}.png" for name in names for number in "12"]
    text = "image_path,label\n" + "".join(f"{path},{path.split('/')[0]}\n" for path in paths)
    table = make_csv(tmp_path / "set", text, *paths)
    assert index_of(tmp_path / "set").classes == index_of(table).classes == names
    assert tuple(ReaderImageFolder(str(tmp_path / "set")).class_to_idx) == names
