"""``twinbud compare`` orders runs by what they say of labelled images that they have not learned from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import twinbud as api
from helpers.builders import save_images
from helpers.command import refusal, trained, twinbud
from helpers.runs import read_json, rows
from twinbud.evaluation.bootstrap import paired_difference
from twinbud.runs import cross_fit


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_images(tmp_path_factory.mktemp("images"), {"dark": 12, "grey": 12, "light": 12})


@pytest.fixture(scope="module")
def compared(
    images: Path, shared_teacher: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, dict[str, Any]]:
    """A run that learns the brightness, one that hardly moves from its random start, and their comparison."""
    folder = tmp_path_factory.mktemp("runs")
    poor = trained(images, shared_teacher, folder / "poor", "--method", "kaiming", "--learning-rate", "1e-7")
    good = trained(
        images, shared_teacher, folder / "good", "--method", "selection", "--learning-rate", "5e-3", "--epochs", "20"
    )
    answer = twinbud("compare", poor, good, "--folds", "2", "--json")
    assert answer.code == 0, answer.err
    return poor, good, json.loads(answer.out)


def test_the_better_run_is_first_and_the_other_one_is_told_from_it(compared: tuple[Path, Path, dict[str, Any]]) -> None:
    poor, good, found = compared
    first, second = found["runs"]
    assert [first["folder"], second["folder"]] == [str(good), str(poor)]
    assert first["log_loss"] < second["log_loss"]
    assert first["accuracy"] > second["accuracy"]
    mean, (low, high) = second["log_loss_difference"]
    assert mean == pytest.approx(second["log_loss"] - first["log_loss"])
    assert 0 < low < mean < high
    assert second["accuracy_difference"][0] == pytest.approx(second["accuracy"] - first["accuracy"])
    assert (first["is_undecided"], second["is_undecided"]) == (False, False)
    assert first["num_parameters"] == read_json(good / "metrics.json")["num_parameters"]


def test_every_labelled_image_is_judged_once_and_no_test_image(compared: tuple[Path, Path, dict[str, Any]]) -> None:
    for run in compared[:2]:
        labelled = {row["image_path"] for row in rows(run / "split.csv") if row["labelled"] == "1"}
        kept = read_json(run / "out_of_fold.json")["paths"]
        assert sorted(kept) == sorted(labelled)
        assert not (run / "folds").exists()


def test_nothing_is_trained_again_for_another_comparison_or_a_calibration(
    compared: tuple[Path, Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poor, good = (Path(shutil.copytree(run, tmp_path / run.name)) for run in compared[:2])
    monkeypatch.delattr(cross_fit, "train")
    answer = twinbud("compare", good, poor, "--folds", "2")
    assert answer.code == 0, answer.err
    assert f"lowest log-loss: {good}" in answer.out
    assert answer.out.endswith("): worse\n")
    assert twinbud("calibrate", good, "--folds", "2", "--coverage", "0.8").code == 0
    assert read_json(good / "model" / "trust.json")["num_folds"] == 2


def test_other_folds_or_other_weights_need_new_predictions(
    compared: tuple[Path, Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poor, good = (Path(shutil.copytree(run, tmp_path / run.name)) for run in compared[:2])
    trained_folders: list[str] = []

    def refuse(config: Any, **_: Any) -> None:
        trained_folders.append(f"{config.output.parent.parent.name} {config.output.name}")
        raise KeyboardInterrupt

    monkeypatch.setattr(cross_fit, "train", refuse)
    assert twinbud("compare", poor, good, "--folds", "3").code == 130
    shutil.copy(poor / "model" / "model.safetensors", good / "model")
    assert twinbud("compare", good, poor, "--folds", "2").code == 130
    assert trained_folders == ["poor 1-of-3", "good 1-of-2"]


def test_runs_that_cannot_be_told_apart_are_undecided(
    compared: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    good = Path(shutil.copytree(compared[1], tmp_path / "good"))
    answer = twinbud("compare", compared[1], good, "--folds", "2")
    line = f"{good}: log-loss +0.000 (+0.000 to +0.000), accuracy +0.000 (+0.000 to +0.000): undecided, the interval"
    assert f"{line} of the log-loss contains 0" in answer.out.splitlines()


@pytest.mark.parametrize(
    ("name", "old", "new", "problem"),
    [
        ("metrics.json", None, None, "metrics.json: the metrics of the run cannot be read (No such file or directory)"),
        ("metrics.json", '"num_parameters": ', '"num_parameters": -', "cannot be read (num_parameters is -"),
        ("config.yaml", "epochs: 1\n", "", "config.yaml: the run cannot be repeated: the file lacks epochs."),
        ("config.yaml", "data: ", "x: ", "config.yaml: there is no setting 'x'."),
        (
            "out_of_fold.json",
            '"novelty": [\n    ',
            '"novelty": [\n    1',
            "(the content was changed after it was written)",
        ),
        (
            "split.csv",
            ",1,",
            ",0,",
            "split.csv: the file has 8 test images and 27 labelled training images, but the run",
        ),
    ],
)
def test_a_damaged_run_is_refused_before_anything_is_trained(
    compared: tuple[Path, Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    old: str | None,
    new: str,
    problem: str,
) -> None:
    run = Path(shutil.copytree(compared[0], tmp_path / "run"))
    if old is None:
        (run / name).unlink()
    else:
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new, 1))
    monkeypatch.delattr(cross_fit, "train")
    assert problem in refusal(twinbud("compare", compared[1], run, "--folds", "2"))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "it did not learn from the same images as "),
        (("--classes", "light,grey,dark"), "its task or classes are not those of "),
    ],
    ids=["seed", "classes"],
)
def test_runs_of_other_images_or_classes_are_refused(
    words: tuple[str, ...],
    problem: str,
    compared: tuple[Path, Path, dict[str, Any]],
    images: Path,
    shared_teacher: str,
    tmp_path: Path,
) -> None:
    seed = ("--fraction", "0.5") if not words else ()
    other = trained(images, shared_teacher, tmp_path / "other", "--method", "kaiming", *words, *seed)
    assert problem in refusal(twinbud("compare", compared[0], other, "--folds", "2"))


def test_a_single_run_twice_or_something_else_is_refused(
    compared: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    run = compared[0]
    assert refusal(twinbud("compare", run)).endswith("1 run cannot be compared. Give at least two runs.")
    assert "the run is given twice" in refusal(twinbud("compare", run, run.parent / "." / run.name))
    assert "the folder is not a run" in refusal(twinbud("compare", run, tmp_path))
    damaged = Path(shutil.copytree(run, tmp_path / "damaged"))
    (damaged / "out_of_fold.json").write_text("{")
    assert "the out-of-fold predictions cannot be used" in refusal(twinbud("compare", run, damaged, "--folds", "2"))


def test_several_labels_are_compared_by_their_known_labels(shared_teacher: str, tmp_path: Path) -> None:
    folder = save_images(tmp_path / "images", {"dark": 12, "light": 12})
    lines = ["image_path,bright,edge"]
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        known = "" if number % 5 == 0 else number % 2
        lines.append(f"{path.relative_to(folder)},{int(path.parent.name == 'light')},{known}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    runs = [
        trained(
            folder / "labels.csv",
            shared_teacher,
            tmp_path / method,
            "--method",
            method,
            *("--label-columns", "bright,edge"),
        )
        for method in ("kaiming", "selection")
    ]
    found = api.compare(runs, folds=2, show_progress=False)
    assert 0 < found.best.log_loss <= found.runs[1].log_loss
    assert found.runs[1].accuracy_difference is not None
    assert found.runs[1].accuracy_difference[0] == pytest.approx(found.runs[1].accuracy - found.best.accuracy, abs=0.2)


def test_the_interval_of_a_difference_is_that_of_a_paired_bootstrap() -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(1, 1, 400), random.normal(0.8, 1, 400)
    mean, (low, high) = paired_difference(first, second, np.arange(400), seed=0)
    error = (first - second).std(ddof=1) / 20
    assert mean == pytest.approx((first - second).mean())
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.15 * error)
    # images of one patient that always agree tell no more than one of them
    _, (low_2, high_2) = paired_difference(
        np.repeat(first, 4), np.repeat(second, 4), np.repeat(np.arange(400), 4), seed=0
    )
    assert (low_2, high_2) == pytest.approx((low, high))
