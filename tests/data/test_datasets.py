"""Public sets by name: the true layout becomes rows, and anything else is one clear line."""

from __future__ import annotations

import sys
import types
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.public_sets import (
    CT_SLICES,
    RADIOGRAPHY,
    medmnist_arrays,
    save_ct_slices,
    save_radiography,
    save_tumors,
)
from twinbud.config.data_config import DataConfig
from twinbud.config.data_spec import KAGGLE_SETS, MEDMNIST_PREFIX, MEDMNIST_SETS, parse_data
from twinbud.core.errors import TwinbudError
from twinbud.data.datasets.layouts import patient_in_name
from twinbud.data.datasets.listing import list_datasets
from twinbud.data.datasets.registry import DATASETS, DatasetEntry, entry_of
from twinbud.data.image_store import load_image_store
from twinbud.data.index import ImageIndex
from twinbud.data.source import read_index
from twinbud.data.split import make_split


@pytest.fixture(autouse=True)
def nothing_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home directory without downloads, a cache of its own, and none of the optional packages."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.setenv("TWINBUD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KAGGLEHUB_CACHE", raising=False)
    for package in ("kagglehub", "medmnist", "datasets"):
        monkeypatch.setitem(sys.modules, package, None)


def index_of(name: str, root: Path | None = None, **settings: Any) -> ImageIndex:
    return read_index(DataConfig(data=name, data_root=root, **settings))


def refusal(name: str, root: Path | None = None, **settings: Any) -> str:
    with pytest.raises(TwinbudError) as caught:
        index_of(name, root, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def warnings(image_index: ImageIndex) -> list[str]:
    return [note for note in image_index.notes if note.startswith("not the published ")]


def publish(monkeypatch: pytest.MonkeyPatch, name: str, **facts: Any) -> None:
    """Make a set publish other facts, such as the counts of its stand-in."""
    every = tuple(replace(entry, **facts) if entry.name == name else entry for entry in DATASETS)
    monkeypatch.setattr("twinbud.data.datasets.registry.DATASETS", every)


def test_the_names_that_data_takes_are_the_sets_that_are_described() -> None:
    assert [entry.name for entry in DATASETS] == [*KAGGLE_SETS, *(MEDMNIST_PREFIX + name for name in MEDMNIST_SETS)]
    for entry in DATASETS:
        assert set(entry.kaggle.variants if entry.kaggle else ()) == set(KAGGLE_SETS.get(entry.name, ()))


def test_the_sets_of_the_paper_have_its_numbers_of_images_and_classes() -> None:
    sizes = {entry.name: (entry.num_images, len(entry.classes)) for entry in DATASETS if entry.kaggle}
    assert sizes == {
        "covid19-radiography": (21165, 4), "covid-ct-slices": (17104, 3), "brain-tumor-mri": (7023, 4)
    }  # fmt: skip


@pytest.mark.parametrize("entry", DATASETS, ids=lambda entry: entry.name)
def test_published_facts_agree_with_each_other(entry: DatasetEntry) -> None:
    assert len(set(entry.classes)) == len(entry.classes) >= 2
    if entry.class_counts:
        assert tuple(entry.class_counts) == entry.classes
        assert sum(entry.class_counts.values()) in (sum(entry.part_counts.values()), entry.num_images)
    if entry.kaggle:
        assert set(entry.kaggle.folders.values()) == set(entry.classes)
    assert entry.license
    assert entry.origin.startswith("https://")


# --- the three sets of the paper


def test_masks_of_the_radiography_set_are_counted_and_never_samples(tmp_path: Path) -> None:
    image_index = index_of("covid19-radiography", save_radiography(tmp_path))
    assert Counter(row.label for row in image_index.rows) == RADIOGRAPHY
    assert image_index.classes == ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
    assert all("/images/" in row.path for row in image_index.rows)
    ignored = {file.path: file.reason for file in image_index.ignored}
    masks = {path: reason for path, reason in ignored.items() if "masks" in path}
    assert masks == {f"{name}/masks": f"{count} masks, not samples" for name, count in RADIOGRAPHY.items()}
    assert len(ignored) == len(masks) + 5  # four tables and a text


@pytest.mark.parametrize("inside", ["", "COVID-19_Radiography_Dataset"])
def test_paths_do_not_depend_on_which_folder_of_a_copy_is_given(tmp_path: Path, inside: str) -> None:
    save_radiography(tmp_path)
    assert index_of("covid19-radiography", tmp_path / inside).rows[0].path == "COVID/images/COVID-1.png"


def test_a_root_may_hold_a_folder_for_each_set(tmp_path: Path) -> None:
    save_tumors(tmp_path / "brain-tumor-mri")
    save_ct_slices(tmp_path / "covid-ct-slices")
    assert index_of("brain-tumor-mri", tmp_path).rows[0].path.startswith("Testing/glioma/")
    assert index_of("covid-ct-slices", tmp_path).rows[0].path.startswith("1NonCOVID/")


def test_patients_of_ct_slices_come_from_the_tables_whatever_their_encoding(tmp_path: Path) -> None:
    image_index = index_of("covid-ct-slices", save_ct_slices(tmp_path))
    expected = {
        f"{folder}/{file}": patient.strip() for folder, files in CT_SLICES.items() for file, patient in files.items()
    }
    assert {row.path: row.patient_id for row in image_index.rows} == expected
    assert Counter(row.label for row in image_index.rows) == {"Normal": 5, "COVID-19": 6, "CAP": 4}
    assert len(image_index.notes) == len(warnings(image_index)) == 1


def test_without_the_tables_patients_come_from_the_file_names_and_a_note_says_so(tmp_path: Path) -> None:
    image_index = index_of("covid-ct-slices", save_ct_slices(tmp_path, tables=["1NonCOVID", "2COVID"]))
    assert "meta_data_cap.csv was not found: the patients of CAP are read from the file names" in image_index.notes
    cap = {row.path: row.patient_id for row in image_index.rows if row.label == "CAP"}
    assert cap == {f"3CAP/{file}": patient for file, patient in CT_SLICES["3CAP"].items()}


def test_a_file_name_never_tells_another_patient_than_the_table() -> None:
    known = [(file, patient.strip()) for files in CT_SLICES.values() for file, patient in files.items()]
    told = {file: (patient_in_name(file.removesuffix(".png")), patient) for file, patient in known}
    unlike = {file: found for file, (found, patient) in told.items() if found not in (patient, None)}
    assert unlike == {"14_Jun_radiopaedia_7_85703_0_case20_10.png": "radiopaedia_7"}  # the table has a number
    assert sum(found is None for found, _ in told.values()) == 2  # Cohen and Zhao


def test_a_table_of_ct_slices_without_patients_is_to_be_downloaded_again(tmp_path: Path) -> None:
    folder = save_ct_slices(tmp_path)
    for table in tmp_path.rglob("*.csv"):
        table.write_text(table.read_text(encoding="latin-1").replace("Patient ID", "Who", 1), encoding="latin-1")
    text = refusal("covid-ct-slices", folder)
    assert "missing columns: 'Patient ID' (the header has 'index', 'File name', 'Who', 'Presentation')" in text
    assert text.endswith("Download the set again.")


def test_no_patient_of_ct_slices_is_on_both_sides_of_the_split(tmp_path: Path) -> None:
    image_index = index_of("covid-ct-slices", save_ct_slices(tmp_path))
    split = make_split(image_index, [row.path for row in image_index.rows], DataConfig(), seed=0)
    sides = [{image_index.rows[index].patient_id for index in part} for part in (split.train, split.test)]
    assert split.by_patient
    assert not sides[0] & sides[1]
    assert split.notes[0].startswith("not the published ")


def test_training_and_testing_are_pooled_unless_the_given_split_is_asked_for(tmp_path: Path) -> None:
    save_tumors(tmp_path)
    pooled = index_of("brain-tumor-mri", tmp_path)
    given = index_of("brain-tumor-mri@given", tmp_path)
    assert len(pooled.rows) == len(given.rows) == 24
    assert not pooled.has_splits
    assert {row.path.partition("/")[0]: row.split for row in given.rows} == {"Training": "train", "Testing": "test"}
    assert [(row.path, row.label) for row in pooled.rows] == [(row.path, row.label) for row in given.rows]


def test_counts_that_are_not_the_published_ones_are_one_warning_with_both(tmp_path: Path) -> None:
    (warning,) = warnings(index_of("covid19-radiography", save_radiography(tmp_path)))
    assert "COVID 4 (published 3,616), Lung_Opacity 5 (published 6,012)" in warning


def test_published_counts_give_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, "covid19-radiography", class_counts=RADIOGRAPHY)
    assert index_of("covid19-radiography", save_radiography(tmp_path)).notes == ()


def test_a_root_of_another_layout_says_what_was_looked_for_and_found(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    assert refusal("covid-ct-slices", tmp_path) == (
        f"--data covid-ct-slices --data-root {tmp_path}: looked for the folders 1NonCOVID, 2COVID, 3CAP in it and in "
        "curated_data/curated_data, curated_data, covid-ct-slices/curated_data/curated_data, "
        "covid-ct-slices/curated_data, covid-ct-slices; found 'pictures'. Give the folder of a copy of "
        "https://www.kaggle.com/datasets/maedemaftouni/large-covid19-ct-slice-dataset."
    )


def test_an_incomplete_copy_says_which_folders_are_missing(tmp_path: Path) -> None:
    save_radiography(tmp_path, {"COVID": 2, "Normal": 2})
    text = refusal("covid19-radiography", tmp_path)
    assert "COVID-19_Radiography_Dataset lacks Lung_Opacity/images, Viral Pneumonia/images." in text


@pytest.mark.parametrize("name", ["brain-tumor-mri", "medmnist:breastmnist"])
def test_a_root_that_is_not_there_is_an_error(name: str, tmp_path: Path) -> None:
    assert f"--data-root {tmp_path / 'none'}: " in refusal(name, tmp_path / "none")


# --- where copies come from


def test_a_download_of_kagglehub_is_used_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    base = tmp_path / "datasets" / "masoudnickparvar" / "brain-tumor-mri-dataset"
    save_tumors(base / "versions" / "1")
    assert "kagglehub is not installed" in refusal("brain-tumor-mri")  # the download has not ended
    (base / "1.complete").touch()
    assert index_of("brain-tumor-mri").source == str(base / "versions" / "1")


def test_a_set_without_a_pinned_version_takes_the_newest_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    base = tmp_path / "datasets" / "maedemaftouni" / "large-covid19-ct-slice-dataset"
    for version in ("9", "10"):
        save_ct_slices(base / "versions" / version)
        (base / f"{version}.complete").touch()
    assert f"{base}/versions/10/" in index_of("covid-ct-slices").source


def test_the_version_with_the_published_counts_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def dataset_download(handle: str) -> str:
        asked.append(handle)
        return str(save_tumors(tmp_path / "downloaded"))

    monkeypatch.setitem(sys.modules, "kagglehub", types.SimpleNamespace(dataset_download=dataset_download))
    assert len(index_of("brain-tumor-mri").rows) == 24
    assert asked == ["masoudnickparvar/brain-tumor-mri-dataset/versions/1"]


def test_a_missing_package_names_its_extra_and_the_offline_way() -> None:
    assert refusal("covid19-radiography") == (
        "--data covid19-radiography: the package kagglehub is not installed. Run: pip install \"twinbud[kaggle]\"; or "
        "download it from https://www.kaggle.com/datasets/tawsifurrahman/covid19-radiography-database and give "
        "--data-root FOLDER."
    )  # fmt: skip
    assert refusal("medmnist:retinamnist@64") == (
        "--data medmnist:retinamnist@64: the package medmnist is not installed. Run: pip install \"twinbud[medmnist]\";"
        " or download retinamnist_64.npz from https://medmnist.com and give --data-root FOLDER."
    )  # fmt: skip


def test_without_a_network_the_error_names_the_offline_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def dataset_download(handle: str) -> str:
        del handle
        raise ConnectionError("Failed to resolve 'api'\nand more")

    monkeypatch.setitem(sys.modules, "kagglehub", types.SimpleNamespace(dataset_download=dataset_download))
    text = refusal("brain-tumor-mri")
    assert "cannot be downloaded (ConnectionError: Failed to resolve 'api'). Check the network" in text
    assert text.endswith("and give --data-root FOLDER.")


# --- MedMNIST


def save_medmnist(folder: Path, name: str, num_classes: int, shape: tuple[int, ...], **options: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = medmnist_arrays(num_classes, shape, **options)
    np.savez_compressed(folder / name, **arrays)
    return arrays


@pytest.mark.parametrize(
    ("name", "file", "num_classes", "shape"),
    [
        ("medmnist:breastmnist", "breastmnist.npz", 2, (28, 28)),
        ("medmnist:bloodmnist@64", "bloodmnist_64.npz", 8, (64, 64, 3)),
        ("medmnist:organcmnist@128", "organcmnist_128.npz", 11, (128, 128)),
    ],
)
def test_the_pixels_of_medmnist_reach_the_network_bit_by_bit(
    tmp_path: Path, name: str, file: str, num_classes: int, shape: tuple[int, ...]
) -> None:
    arrays = save_medmnist(tmp_path / "files", file, num_classes, shape, counts=(24, 11, 13))
    image_index = index_of(name, tmp_path / "files")
    _, store = load_image_store(image_index, image_size=shape[0], max_megapixels=1, skip_broken=False)
    pixels = store.tensor(range(len(store))).numpy()
    for row, found_CSS in zip(image_index.rows, pixels, strict=True):
        number = int(Path(row.path).stem)
        image = arrays[f"{row.split}_images"][number]
        expected = np.stack([image] * 3) if image.ndim == 2 else np.moveaxis(image, 2, 0)
        np.testing.assert_array_equal(found_CSS, expected)
        assert row.label == entry_of(name.partition("@")[0]).classes[int(arrays[f"{row.split}_labels"][number, 0])]


def test_the_own_split_of_medmnist_is_kept_and_val_is_never_trained_on(tmp_path: Path) -> None:
    save_medmnist(tmp_path, "breastmnist.npz", 2, (28, 28))
    image_index = index_of("medmnist:breastmnist", tmp_path)
    split = make_split(image_index, [row.path for row in image_index.rows], DataConfig(), seed=0)
    assert [len(part) for part in (split.train, split.val, split.test)] == [12, 4, 6]
    assert split.given
    assert {image_index.rows[index].split for index in split.train} == {"train"}
    assert "the set's own split; its val part is reported and never trained on (train 12, val 4, test 6)" in split.notes
    assert "val 4 (published 78)" in warnings(image_index)[0]


def test_the_grades_of_retinamnist_are_classes(tmp_path: Path) -> None:
    save_medmnist(tmp_path, "retinamnist.npz", 5, (28, 28, 3), counts=(15, 5, 10))
    assert index_of("medmnist:retinamnist", tmp_path).classes == ("0", "1", "2", "3", "4")


def test_chestmnist_is_refused_before_anything_is_opened() -> None:
    assert refusal("medmnist:chestmnist") == (
        "--data medmnist:chestmnist: an image can have several of its 14 labels; export it to a CSV for "
        "--task multi-label. Choose another: twinbud datasets."
    )


def test_images_are_written_once_and_again_if_one_is_lost_or_the_file_changes(tmp_path: Path) -> None:
    save_medmnist(tmp_path, "breastmnist.npz", 2, (28, 28))
    first = index_of("medmnist:breastmnist", tmp_path).rows[0].image.file
    written = first.stat().st_mtime_ns
    assert index_of("medmnist:breastmnist", tmp_path / "breastmnist.npz").rows[0].image.file == first
    assert first.stat().st_mtime_ns == written
    first.unlink()
    assert index_of("medmnist:breastmnist", tmp_path).rows[0].image.file == first
    assert first.is_file()
    save_medmnist(tmp_path, "breastmnist.npz", 2, (28, 28), counts=(14, 4, 6))
    assert len(index_of("medmnist:breastmnist", tmp_path).rows) == 24


def test_a_file_of_medmnist_in_its_own_folder_is_found(tmp_path: Path) -> None:
    save_medmnist(tmp_path / "home" / ".medmnist", "breastmnist_224.npz", 2, (224, 224), counts=(2, 2, 2))
    assert len(index_of("medmnist:breastmnist@224").rows) == 6


def test_medmnist_is_downloaded_by_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool, int]] = []

    class BreastMNIST:
        def __init__(self, split: str, download: bool = False, size: int | None = None, root: str = "") -> None:
            asked.append((split, download, size or 28))
            save_medmnist(Path(root), "breastmnist_64.npz", 2, (64, 64))

    module = types.SimpleNamespace(INFO={"breastmnist": {"python_class": "BreastMNIST"}}, BreastMNIST=BreastMNIST)
    monkeypatch.setitem(sys.modules, "medmnist", module)
    assert len(index_of("medmnist:breastmnist@64").rows) == len(index_of("medmnist:breastmnist@64").rows) == 22
    assert asked == [("val", True, 64)]  # once


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        (medmnist_arrays(2, (64, 64)), "train_images: looked for uint8 (12, 28, 28), found uint8 (12, 64, 64)."),
        (medmnist_arrays(2, (28, 28), num_labels=3), "looked for whole numbers (12, 1), found uint8 (12, 3)."),
        (medmnist_arrays(5, (28, 28)), "train_labels: the set has classes 0 to 1, found 2, 3, 4."),
        ({"train_images": np.zeros(3)}, "the file is damaged, or no MedMNIST file (KeyError: "),
        (
            {**medmnist_arrays(2, (28, 28)), "train_labels": np.array([{}] * 12, dtype=object)},
            "train_labels is not a plain array in C order",
        ),
    ],
)
def test_a_file_with_other_arrays_is_refused(tmp_path: Path, arrays: dict[str, Any], expected: str) -> None:
    np.savez(tmp_path / "breastmnist.npz", **arrays)
    assert expected in refusal("medmnist:breastmnist", tmp_path)


def test_a_cut_file_is_refused_and_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    save_medmnist(tmp_path, "breastmnist.npz", 2, (28, 28))
    file = tmp_path / "breastmnist.npz"
    contents = bytearray(file.read_bytes())
    contents[200:400] = bytes(200)  # in the pixels; the directory at the end is intact
    file.write_bytes(contents)
    assert "the file is damaged" in refusal("medmnist:breastmnist", tmp_path)
    file.write_bytes(contents[: len(contents) // 2])
    assert "the file is damaged" in refusal("medmnist:breastmnist", tmp_path)
    assert not list((tmp_path / "cache").rglob("*.png"))


# --- names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("brain-tumour-mri", "Did you mean 'brain-tumor-mri'? Give a folder"),
        ("brain-tumor-mri@pooled", "Did you mean 'brain-tumor-mri"),
        ("covid-ct-slices@given", "'covid-ct-slices@given' is not one of covid-ct-slices."),
        ("medmnist:brestmnist", "Did you mean 'breastmnist'?"),
        ("medmnist:breastmnist@32", "'32' is not one of 28, 64, 128, 224."),
        ("hf:a/b/c", "Write hf:OWNER/NAME or hf:OWNER/NAME@CONFIG."),
        ("hf:a/b@", "Write hf:OWNER/NAME or hf:OWNER/NAME@CONFIG."),
    ],
)
def test_an_unknown_name_is_an_error_with_a_near_suggestion(
    name: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in refusal(name)


def test_a_name_wins_over_a_folder_of_that_name_and_a_note_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(save_tumors(tmp_path / "brain-tumor-mri").parent)
    assert index_of("brain-tumor-mri", tmp_path).notes[0] == (
        "'brain-tumor-mri' is the set of that name; the folder ./brain-tumor-mri is not used"
    )
    assert not parse_data("brain-tumor-mri").is_path
    assert parse_data("./brain-tumor-mri").is_path
    assert index_of("./brain-tumor-mri").has_splits  # Training and Testing, as in any folder


def test_a_root_without_a_set_by_name_is_refused(shared_images: Path) -> None:
    assert "has no effect" in refusal(str(shared_images), shared_images)
    assert "has no effect" in refusal("phantom", shared_images)


def test_a_column_of_a_set_without_a_table_is_refused(tmp_path: Path) -> None:
    text = refusal("brain-tumor-mri", save_tumors(tmp_path), label_column="tumor")
    assert text == (
        "--label-column: 'tumor' has no effect: 'brain-tumor-mri' is not a CSV and has no columns. "
        "Leave the option out."
    )


# --- the list


def test_the_list_says_which_sets_are_here_and_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    base = tmp_path / "datasets" / "masoudnickparvar" / "brain-tumor-mri-dataset"
    save_tumors(base / "versions" / "1")
    (base / "1.complete").touch()
    save_medmnist(tmp_path / "home" / ".medmnist", "breastmnist_64.npz", 2, (64, 64))
    copies = {name: path for status in list_datasets() for name, path in status.copies.items()}
    assert copies == {
        "brain-tumor-mri": base / "versions" / "1",
        "medmnist:breastmnist@64": tmp_path / "home" / ".medmnist" / "breastmnist_64.npz",
    }


def test_the_list_looks_for_copies_in_a_given_folder(tmp_path: Path) -> None:
    save_ct_slices(tmp_path / "covid-ct-slices")
    (status,) = [status for status in list_datasets(tmp_path) if status.copies]
    assert status.copies == {"covid-ct-slices": tmp_path / "covid-ct-slices" / "curated_data" / "curated_data"}
