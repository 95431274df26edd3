"""Which images a run trains on, which it evaluates, and which it keeps."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.builders import save_images
from helpers.command import trained
from helpers.runs import read_json, rows, same_outcome
from twinbud.core.memory import PeakMemory
from twinbud.data.formats.decoding import ImageFile
from twinbud.runs import context, fitting, pipeline
from twinbud.runs.cost import cost_of
from twinbud.training.checkpoint import EpochRecord
from twinbud.training.epoch_loop import History
from twinbud.training.fit import LabelledImages, fit


def divided(folder: Path, *names: str) -> Path:
    """Split folders of two classes, each part with images of its own."""
    for seed, name in enumerate(names):
        save_images(folder / name, {"dark": 4, "light": 4}, seed=seed)
    return folder


class Spy:
    """Stands in for ``fit`` and remembers the images it was given."""

    def __init__(self) -> None:
        self.images: torch.Tensor | None = None

    def __call__(self, student_pair: Any, data: LabelledImages, *arguments: Any, **settings: Any) -> Any:
        assert isinstance(data.images_NCSS, torch.Tensor)
        self.images = data.images_NCSS.expand(-1, 3, -1, -1).contiguous()
        return fit(student_pair, data, *arguments, **settings)


def decoded(data: Path, paths: list[str]) -> torch.Tensor:
    from twinbud.data.image_store import load_images
    from twinbud.data.index import ImageRef

    image_store, _ = load_images(
        [ImageRef(data / path) for path in paths], image_size=28, max_megapixels=1, skip_broken=False
    )
    return image_store.tensor(range(len(image_store)))


def test_only_labelled_training_images_reach_the_training(
    shared_images: Path, shared_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "fit", spy := Spy())
    run = trained(shared_images, shared_teacher, tmp_path / "run", "--fraction", 0.5)
    split = rows(run / "split.csv")
    labelled = [row["image_path"] for row in split if row["labelled"] == "1"]
    assert {row["split"] for row in split if row["labelled"] == "1"} == {"train"}
    assert len(labelled) == 12
    assert spy.images is not None
    assert torch.equal(spy.images, decoded(shared_images, labelled))
    trained_on = {image.numpy().tobytes() for image in spy.images}
    test = decoded(shared_images, [row["image_path"] for row in split if row["split"] == "test"])
    assert not trained_on & {image.numpy().tobytes() for image in test}


def test_val_is_reported_and_never_trained_on(
    shared_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = divided(tmp_path / "data", "train", "val", "test")
    monkeypatch.setattr(fitting, "fit", spy := Spy())
    run = trained(data, shared_teacher, tmp_path / "run")
    metrics = read_json(run / "metrics.json")
    assert (metrics["num_train"], metrics["num_test"], metrics["val"]["num_test"]) == (8, 8, 8)
    assert 0 <= metrics["val"]["accuracy"] <= 1
    assert spy.images is not None
    assert torch.equal(
        spy.images, decoded(data, [f"train/{c}/{n:03}.png" for c in ("dark", "light") for n in range(4)])
    )
    without = trained(divided(tmp_path / "no-val", "train"), shared_teacher, tmp_path / "without")
    assert "val" not in read_json(without / "metrics.json")


def test_a_test_pass_happens_only_when_asked_for_and_the_last_epoch_stays_the_result(
    shared_images: Path, shared_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []

    def counted(*arguments: Any) -> Any:
        passes.append(1)
        return whole(*arguments)

    whole = context.predict_rows
    monkeypatch.setattr(pipeline, "predict_rows", counted)
    plain = trained(shared_images, shared_teacher, tmp_path / "plain", "--epochs", 3)
    assert len(passes) == 1
    assert read_json(plain / "metrics.json")["best_test_epoch"] is None
    assert [row["test_accuracy"] for row in rows(plain / "history.csv")] == ["", "", ""]

    passes.clear()
    watched = trained(shared_images, shared_teacher, tmp_path / "watched", "--epochs", 3, "--evaluate-every", 2)
    assert len(passes) == 2
    metrics, history = read_json(watched / "metrics.json"), rows(watched / "history.csv")
    assert [row["test_accuracy"] != "" for row in history] == [False, True, False]
    assert metrics["best_test_epoch"] == 2
    assert metrics["best_test_accuracy"] == float(history[1]["test_accuracy"])
    assert same_outcome(plain, watched)
    assert metrics["accuracy"] == read_json(plain / "metrics.json")["accuracy"]


def test_the_best_test_pass_is_the_highest_and_of_equals_the_first() -> None:
    def record(epoch: int, test_accuracy: float | None) -> EpochRecord:
        values = {"learning_rate": 0.0, "loss": 0.0, "loss_ce": 0.0, "loss_skd": None, "accuracy": 0.9 / epoch}
        return EpochRecord(epoch=epoch, step=epoch, seconds=1.0, test_accuracy=test_accuracy, **values)

    tested = {1: None, 2: 0.5, 3: None, 4: 0.75, 5: None, 6: 0.75, 7: 0.25}
    epochs = tuple(record(epoch, accuracy) for epoch, accuracy in tested.items())
    history = History(epochs=epochs, num_steps=7, num_images=70, train_seconds=7.0)
    best = history.best_test_pass
    assert best is not None
    assert (best.epoch, best.test_accuracy) == (4, 0.75)
    cost = cost_of(history, PeakMemory(torch.device("cpu")), num_train=10)
    assert (cost.num_train, cost.epochs, cost.images_per_second) == (10, 7, 10.0)


def test_where_patients_are_known_the_intervals_are_over_them(shared_teacher: str, tmp_path: Path) -> None:
    save_images(tmp_path, {"dark": 12, "light": 12})
    lines = [f"{name}/{n:03}.png,{name},{name}{n // 2}" for name in ("dark", "light") for n in range(12)]
    (tmp_path / "list.csv").write_text("\n".join(["image_path,label,patient_id", *lines]) + "\n")
    metrics = read_json(trained(tmp_path / "list.csv", shared_teacher, tmp_path / "run") / "metrics.json")
    assert metrics["bootstrap_unit"] == "patient"
    assert metrics["num_bootstrap_units"] == metrics["num_test"] / 2


def test_the_report_says_how_many_test_images_training_saw(
    shared_run: Path, shared_teacher: str, tmp_path: Path
) -> None:
    data = divided(tmp_path / "data", "train", "test")
    for number in (0, 1):
        shutil.copy(data / "train" / "dark" / "000.png", data / "test" / "dark" / f"{number:03}.png")
    run = trained(data, shared_teacher, tmp_path / "run")
    for file in (run / "report.html", run / "model" / "README.md"):
        text = file.read_text(encoding="utf-8")
        assert "8, 2 of them identical to training images" in text
        assert "never seen" not in text
    assert "6, never seen in training" in (shared_run / "report.html").read_text(encoding="utf-8")


def test_decoded_images_are_kept_for_the_next_run_unless_that_is_declined(
    shared_images: Path, shared_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWINBUD_CACHE", str(tmp_path / "cache"))
    first = trained(shared_images, shared_teacher, tmp_path / "first", "--no-pixel-cache")
    assert not (tmp_path / "cache").exists()
    second = trained(shared_images, shared_teacher, tmp_path / "second")
    assert sum(path.is_file() for path in (tmp_path / "cache" / "pixels").rglob("*")) == 30
    monkeypatch.setattr(ImageFile, "decode", None)  # nothing is decoded any more
    third = trained(shared_images, shared_teacher, tmp_path / "third")
    predictions = [(run / "predictions.csv").read_bytes() for run in (first, second, third)]
    assert predictions[0] == predictions[1] == predictions[2]
