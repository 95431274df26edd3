"""Public sets by name, as a user gives them to each command."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import twinbud as package
from helpers.command import refusal, train, trained, twinbud
from helpers.public_sets import medmnist_arrays, save_ct_slices, save_radiography, save_tumors
from helpers.studies import recipe_content, save_recipe
from twinbud.config.loading import merge_settings, read_settings_file
from twinbud.data.datasets.registry import DATASETS


@pytest.fixture(autouse=True)
def nothing_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty folders where downloads would be, and no package that downloads."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kagglehub"))
    monkeypatch.setitem(sys.modules, "kagglehub", None)


def test_a_run_on_a_set_by_name_is_evaluated_where_its_copy_is_now(tmp_path: Path, shared_teacher: str) -> None:
    save_tumors(tmp_path / "here")
    root = ("--data-root", tmp_path / "here")
    run = trained("brain-tumor-mri", shared_teacher, tmp_path / "run", *root)
    settings = read_settings_file(run / "config.yaml")
    assert (settings["data"], settings["data_root"]) == ("brain-tumor-mri", str(tmp_path / "here"))
    assert twinbud("evaluate", run).code == 0
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert "there is no such folder" in refusal(twinbud("evaluate", run))
    answer = twinbud("evaluate", run, "--data-root", tmp_path / "there")
    assert "Evaluated on the test part of the run's own split." in answer.out
    again = trained(
        "brain-tumor-mri", shared_teacher, tmp_path / "again", "--data-root", tmp_path / "there",
        "--split", run / "split.csv",
    )  # fmt: skip
    assert (again / "split.csv").read_text() == (run / "split.csv").read_text()


def test_counts_that_differ_are_reported_before_training_and_on_the_page(tmp_path: Path, shared_teacher: str) -> None:
    save_radiography(tmp_path / "copy")
    answer = train("covid19-radiography", shared_teacher, tmp_path / "run", "--data-root", tmp_path / "copy")
    note = "note: not the published numbers of images"
    assert answer.err.startswith(note)
    assert answer.out.count(note) == answer.err.count(note) == 1
    assert "COVID 4 (published 3,616)" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_a_run_on_medmnist_keeps_the_own_split_and_its_images_can_be_predicted(
    tmp_path: Path, shared_teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWINBUD_CACHE", str(tmp_path / "cache"))
    np.savez(tmp_path / "breastmnist.npz", **medmnist_arrays(2, (28, 28)))
    run = trained("medmnist:breastmnist", shared_teacher, tmp_path / "run", "--data-root", tmp_path)
    table = (run / "split.csv").read_text().splitlines()[1:]
    assert {line.partition("/")[0] for line in table} == {"train", "val", "test"}
    assert all(f",{line.partition('/')[0]}," in line for line in table)
    assert twinbud("evaluate", run).code == 0
    (folder,) = (tmp_path / "cache" / "datasets").glob("breastmnist-*")
    answer = twinbud("predict", run, folder / "test")
    assert len(answer.out.splitlines()) == 7, answer.err


def test_a_study_takes_names_and_their_copies(tmp_path: Path, shared_teacher: str) -> None:
    save_tumors(tmp_path / "tumors")
    save_ct_slices(tmp_path / "slices")
    grid = {"data": ["brain-tumor-mri", "covid-ct-slices"], "pair": ["tiny"], "method": ["selection"]}
    content = recipe_content(shared_teacher, grid={**grid, "fraction": [1.0], "sampling": 1}, baseline=None)
    recipe = save_recipe(tmp_path / "recipe.yaml", content)
    runs = ("--runs", tmp_path / "runs", "--workers", 0)
    places = ("--data", f"brain-tumor-mri={tmp_path / 'tumors'}", "--data", f"covid-ct-slices={tmp_path / 'slices'}")
    answer = twinbud("study", recipe, *places, *runs)
    assert answer.code == 0, answer.err
    assert f"reading covid-ct-slices: {tmp_path / 'slices'}" in answer.err
    tables = twinbud("tables", recipe, "--runs", tmp_path / "runs", "--output", tmp_path / "tables")
    assert tables.code == 0, tables.err
    only = twinbud("study", recipe, *places[:2], *runs)
    assert only.code == 2
    assert only.err.splitlines()[-1].startswith(
        "twinbud: --data covid-ct-slices: the package kagglehub is not installed"
    )


def test_a_study_takes_a_public_set_under_the_name_of_the_recipe(tmp_path: Path, shared_teacher: str) -> None:
    save_tumors(tmp_path / "copy")
    grid = {"data": ["brain-mri"], "pair": ["tiny"], "method": ["selection"], "fraction": [1.0], "sampling": 1}
    recipe = save_recipe(tmp_path / "recipe.yaml", recipe_content(shared_teacher, grid=grid, baseline=None))
    place = f"brain-mri=brain-tumor-mri={tmp_path / 'copy'}"
    answer = twinbud("study", recipe, "--data", place, "--runs", tmp_path / "runs", "--workers", 0)
    assert answer.code == 0, answer.err
    (file,) = (tmp_path / "runs").rglob("config.yaml")
    assert read_settings_file(file)["data"] == "brain-tumor-mri"


def test_another_source_of_images_drops_the_root_of_the_file() -> None:
    saved = {"data": "brain-tumor-mri", "data_root": "copies", "epochs": 3}
    assert merge_settings(saved, {"data": "images"}) == {"data": "images", "epochs": 3}
    assert merge_settings(saved, {"data_root": "elsewhere"})["data_root"] == "elsewhere"


def test_the_columns_of_saved_settings_go_with_a_source_that_has_none(tmp_path: Path) -> None:
    saved = {"data": "a.csv", "image_column": "file", "split_column": "part"}
    assert merge_settings(saved, {"data": str(tmp_path)}) == {"data": str(tmp_path)}
    assert merge_settings(saved, {"data": "b.csv"}) == {**saved, "data": "b.csv"}
    assert merge_settings(saved, {"data": "hf:beans"}) == {"data": "hf:beans", "image_column": "file"}


def test_the_list_names_every_set_with_its_facts(tmp_path: Path) -> None:
    save_tumors(tmp_path / "brain-tumor-mri")
    answer = twinbud("datasets", "--data-root", tmp_path)
    assert answer.code == 0, answer.err
    for entry in DATASETS:
        assert f"\n{entry.name}" in f"\n{answer.out}"
    assert "  21,165 images, 4 classes: COVID 3,616; Lung_Opacity 6,012; Normal 10,192; Viral Pneumonia 1,345\n" in (
        answer.out
    )
    assert f"  here: {tmp_path / 'brain-tumor-mri'}\n" in answer.out
    assert "not here: downloaded on use with twinbud[kaggle], or give --data-root" in answer.out


def test_the_list_is_the_same_for_programs(tmp_path: Path) -> None:
    save_tumors(tmp_path)
    listed = json.loads(twinbud("datasets", "--json", "--data-root", tmp_path).out)
    assert listed == [status.to_json() for status in package.datasets(tmp_path)]
    by_name = {each["name"]: each for each in listed}
    assert by_name["brain-tumor-mri"]["copies"] == {"brain-tumor-mri": str(tmp_path)}
    assert by_name["medmnist:bloodmnist"]["part_counts"] == {"train": 11959, "val": 1712, "test": 3421}
    assert by_name["medmnist:chestmnist"]["unsupported"]


def test_a_folder_of_copies_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert refusal(twinbud("datasets", "--data-root", tmp_path / "none")).startswith("--data-root ")


def test_a_set_that_is_not_here_is_refused_before_anything_is_written(tmp_path: Path, shared_teacher: str) -> None:
    assert "kagglehub is not installed" in refusal(train("brain-tumor-mri", shared_teacher, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
