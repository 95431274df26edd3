"""Sets of the Hugging Face hub, without the hub: a stand-in of the package, and the package itself where it is."""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from helpers.public_sets import save_images
from twinbud.config.data_config import DataConfig
from twinbud.core.errors import TwinbudError
from twinbud.core.progress import SilentProgress
from twinbud.data.datasets.image_folder import NewImage, write_once
from twinbud.data.index import ImageIndex
from twinbud.data.source import read_index


@dataclass
class Image:
    decode: bool = True


@dataclass
class ClassLabel:
    names: Sequence[str]


@dataclass
class Value:
    dtype: str


@dataclass
class List:
    feature: Any


@dataclass
class Dataset:
    """The part of ``datasets.Dataset`` that is used: columns of equal length."""

    features: Mapping[str, Any]
    columns: Mapping[str, list[Any]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, column: str) -> list[Any]:
        return self.columns[column]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        assert all(not feature.decode for feature in self.features.values() if isinstance(feature, Image))
        return (dict(zip(self.columns, row, strict=True)) for row in zip(*self.columns.values(), strict=True))

    def select_columns(self, names: list[str]) -> Dataset:
        return Dataset({name: self.features[name] for name in names}, {name: self.columns[name] for name in names})

    def cast_column(self, column: str, feature: Any) -> Dataset:
        return Dataset({**self.features, column: feature}, self.columns)


def encoded(number: int, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (9, 9), dtype=np.uint8)
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def part(labels: Sequence[Any], first: int = 0, label: Any = None, kind: str = "PNG", **columns: list[Any]) -> Dataset:
    images = [{"bytes": encoded(first + place, kind), "path": None} for place in range(len(labels))]
    features = {"image": Image(), "label": label or ClassLabel(["cyst", "tumor"])}
    features |= {name: Value("string") for name in columns}
    return Dataset(features, {"image": images, "label": list(labels), **columns})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Sets by repository and configuration; a name without an entry cannot be reached. ``asked`` counts."""
    monkeypatch.setenv("TWINBUD_CACHE", str(tmp_path / "cache"))
    sets: dict[str, Any] = {"asked": 0}

    def load_dataset(path: str, name: str | None = None, cache_dir: str | None = None) -> dict[str, Dataset]:
        del cache_dir
        sets["asked"] += 1
        found = sets.get(path if name is None else f"{path}@{name}")
        if found is None:
            raise ConnectionError(f"Couldn't reach '{path}' on the Hub (LocalEntryNotFoundError)")
        return found

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return sets


def index_of(name: str = "hf:clinic/lesions", **settings: Any) -> ImageIndex:
    return read_index(DataConfig(data=name, **settings))


def refusal(name: str = "hf:clinic/lesions", **settings: Any) -> str:
    with pytest.raises(TwinbudError) as caught:
        index_of(name, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def labels(image_index: ImageIndex) -> list[tuple[str, str, str | None]]:
    return [(row.path, row.label, row.split) for row in image_index.rows]


def test_files_are_written_byte_by_byte_and_parts_are_kept(hub: dict[str, Any]) -> None:
    hub["clinic/lesions"] = {
        "train": part([0, 1, 0, 1], kind="JPEG"),
        "validation": part([0], 10),
        "test": part([1], 20),
    }
    image_index = index_of()
    assert labels(image_index) == [
        ("test/000000.png", "tumor", "test"),
        ("train/000000.jpg", "cyst", "train"),
        ("train/000001.jpg", "tumor", "train"),
        ("train/000002.jpg", "cyst", "train"),
        ("train/000003.jpg", "tumor", "train"),
        ("validation/000000.png", "cyst", "val"),
    ]
    assert [row.image.file.read_bytes() for row in image_index.rows] == [
        encoded(20), *(encoded(number, "JPEG") for number in range(4)), encoded(10)
    ]  # fmt: skip
    assert "images are in column 'image', classes in column 'label'" in image_index.notes


def test_a_set_is_read_from_the_hub_once(hub: dict[str, Any]) -> None:
    hub["clinic/lesions"] = {"train": part([0, 1, 0, 1]), "extra": part([0], 10)}
    first = index_of()
    del hub["clinic/lesions"]  # the network is gone
    assert index_of() == first
    assert hub["asked"] == 1
    assert "part 'extra' (1 images) is not train, validation or test: left out" in first.notes


def test_a_configuration_is_a_set_of_its_own(hub: dict[str, Any]) -> None:
    hub["clinic/lesions@small"] = {"train": part([0, 0, 1, 1])}
    hub["clinic/lesions@large"] = {"train": part([0, 0, 0, 1, 1, 1])}
    assert [len(index_of(f"hf:clinic/lesions@{name}").rows) for name in ("small", "large")] == [4, 6]


@pytest.mark.parametrize("name", ["train", "all"])
def test_a_single_part_is_no_split(hub: dict[str, Any], name: str) -> None:
    hub["clinic/lesions"] = {name: part([0, 0, 1, 1])}
    assert not index_of().has_splits


def test_images_without_a_label_are_left_out_and_counted(hub: dict[str, Any]) -> None:
    hub["clinic/lesions"] = {"train": part([0, 0, 1, 1]), "test": part([-1, -1, -1], 10)}
    image_index = index_of()
    assert len(image_index.rows) == 4
    assert "3 images have no label: left out" in image_index.notes


def test_text_and_numbers_are_classes_and_patients_are_read(hub: dict[str, Any]) -> None:
    grades = part([3, 3, 1, 1], label=Value("int64"), patient_id=["a", "a", "b", None])
    hub["clinic/lesions"] = {"train": grades}
    image_index = index_of()
    assert image_index.classes == ("1", "3")
    assert [row.patient_id for row in image_index.rows] == ["a", "a", "b", None]


def test_columns_can_be_named(hub: dict[str, Any]) -> None:
    found = part([0, 1, 0, 1], site=["x", "y", "y", "x"])
    found.features = {**found.features, "scan": Image(), "grade": ClassLabel(["low", "high"])}
    scans = [{"bytes": encoded(place), "path": None} for place in range(40, 44)]
    found.columns = {**found.columns, "scan": scans, "grade": [1, 1, 0, 0]}
    hub["clinic/lesions"] = {"train": found}
    assert "several columns may hold the image: image, scan" in refusal()
    chosen = index_of(image_column="scan", label_column="grade", patient_column="site")
    assert [(row.label, row.patient_id) for row in chosen.rows] == [
        ("high", "x"), ("high", "y"), ("low", "y"), ("low", "x")
    ]  # fmt: skip
    assert chosen.rows[0].image.file.read_bytes() == encoded(40)
    assert index_of(image_column="scan").rows[0].label == "cyst"  # not the copy that has other classes
    assert refusal(image_column="grade").startswith(
        "--image-column: column 'grade' holds no images; the set has 'image'"
    )
    assert "--image-column: the set has no column 'scans', only 'image' (Image), " in refusal(image_column="scans")


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (List(ClassLabel(["a", "b"])), "column 'label' does not hold one label an image (List)"),
        (Value("float32"), "column 'label' holds float32, not classes"),
    ],
)
def test_several_labels_an_image_and_measurements_are_refused(hub: dict[str, Any], label: Any, expected: str) -> None:
    hub["clinic/lesions"] = {"train": part([0, 0, 1, 1], label=label)}
    assert expected in refusal()


def test_without_images_the_columns_are_named(hub: dict[str, Any]) -> None:
    hub["clinic/lesions"] = {"train": Dataset({"text": Value("string")}, {"text": ["a"]})}
    assert "no column holds the image; the set has 'text' (Value). Name it with --image-column." in refusal()


def test_without_a_network_the_error_names_the_offline_way(hub: dict[str, Any]) -> None:
    del hub
    assert refusal() == (
        "--data hf:clinic/lesions: the Hugging Face hub cannot be reached (ConnectionError: Couldn't reach "
        "'clinic/lesions' on the Hub (LocalEntryNotFoundError)). Check the network; or give a local copy of it with "
        "--data-root FOLDER."
    )


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TWINBUD_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert 'the package datasets is not installed. Run: pip install "twinbud[datasets]"; or ' in refusal()


def test_a_local_copy_that_is_not_there_is_an_error(hub: dict[str, Any], tmp_path: Path) -> None:
    assert "there is no such folder" in refusal(data_root=tmp_path / "none")
    assert not hub["asked"]


def test_a_split_column_is_refused(hub: dict[str, Any]) -> None:
    del hub
    assert "--split-column: 'fold' has no effect" in refusal(split_column="fold")
    assert "is a set of the hub, for which it is not used" in refusal(label_columns="left,right")


# --- the package itself


@pytest.mark.filterwarnings("default")
def test_the_package_reads_a_local_copy_of_image_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("TWINBUD_CACHE", str(tmp_path / "cache"))
    for name, count in (("train", 3), ("test", 2)):
        for level, label in enumerate(("cyst", "tumor")):
            save_images(tmp_path / "copy" / name / label, [f"{number}.png" for number in range(count)], level)
    image_index = index_of(data_root=tmp_path / "copy")
    assert len(image_index.rows) == 10
    assert {(row.path.partition("/")[0], row.split) for row in image_index.rows} == {
        ("train", "train"), ("test", "test")
    }  # fmt: skip
    originals = {file.read_bytes() for file in (tmp_path / "copy").rglob("*.png")}
    assert {row.image.file.read_bytes() for row in image_index.rows} == originals
    assert {row.label for row in image_index.rows} == {"cyst", "tumor"}
    save_images(tmp_path / "copy" / "train" / "cyst", ["another.png"], 2)
    assert len(index_of(data_root=tmp_path / "copy").rows) == 11


@pytest.mark.filterwarnings("default")
def test_the_package_reads_a_local_copy_in_parquet_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("TWINBUD_CACHE", str(tmp_path / "cache"))
    features = datasets.Features(
        {
            "scan": datasets.Image(),
            "finding": datasets.ClassLabel(names=["cyst", "tumor"]),
            "age": datasets.Value("int32"),
        }
    )
    (tmp_path / "copy" / "data").mkdir(parents=True)
    for name, first, values in (("train", 0, [0, 1, 0, 1]), ("test", 10, [1, 0])):
        columns = {
            "scan": [{"bytes": encoded(first + place), "path": None} for place in range(len(values))],
            "finding": values,
            "age": [40] * len(values),
        }
        table = datasets.Dataset.from_dict(columns, features=features)
        table.to_parquet(tmp_path / "copy" / "data" / f"{name}-00000-of-00001.parquet")
    image_index = index_of(data_root=tmp_path / "copy")
    assert labels(image_index) == [
        ("test/000000.png", "tumor", "test"),
        ("test/000001.png", "cyst", "test"),
        ("train/000000.png", "cyst", "train"),
        ("train/000001.png", "tumor", "train"),
        ("train/000002.png", "cyst", "train"),
        ("train/000003.png", "tumor", "train"),
    ]
    assert [row.image.file.read_bytes() for row in image_index.rows[:2]] == [encoded(10), encoded(11)]


def test_a_set_that_another_process_has_written_meanwhile_stays_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process reads its images already."""
    monkeypatch.setenv("TWINBUD_CACHE", str(tmp_path))
    images = [NewImage(path=f"{number}.png", encode=partial(encoded, number), label="cyst") for number in range(3)]
    write = partial(write_once, "small", num_images=3, progress=SilentProgress(), label="small")

    def written_by_another() -> Iterator[NewImage]:
        yield images[0]
        inodes.append(write(lambda: images).stat().st_ino)
        yield from images[1:]

    inodes: list[int] = []
    folder = write(written_by_another)
    assert inodes == [folder.stat().st_ino]
    assert [path.name for path in folder.parent.iterdir()] == ["small"]
