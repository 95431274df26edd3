"""One run from end to end: what it leaves, what repeats it, and what it never reads."""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from helpers.builders import save_images, save_vit_teacher
from helpers.command import SMALL, refusal, train, trained
from helpers.command import twinbud as command
from twinbud.config.loading import run_config
from twinbud.core.memory import PeakMemory
from twinbud.data import image_store
from twinbud.report.model import read_summary
from twinbud.runs import context, pipeline
from twinbud.runs.cost import cost_of
from twinbud.runs.result import RunMetrics
from twinbud.training.checkpoint import EpochRecord
from twinbud.training.epoch_loop import History
from twinbud.training.fit import LabelledImages, fit

METHODS = ("dual", "selection", "timm", "xavier", "kaiming")
METRICS = {
    "accuracy", "balanced_accuracy", "f1_macro", "auroc_macro", "mcc", "ece", "brier", "per_class", "confusion_matrix",
    "confidence_intervals", "num_train", "num_test", "train_seconds", "images_per_second", "peak_memory_mib",
    "best_test_epoch",
}  # fmt: skip
FILES = {
    "config.yaml", "split.csv", "history.csv", "metrics.json", "predictions.csv", "report.html", "environment.json",
    "model", "summary.json",
}  # fmt: skip


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def same_outcome(one: Path, other: Path) -> bool:
    """Whether two runs gave the same weights and predictions, bit for bit."""
    predictions = [(run / "predictions.csv").read_bytes() for run in (one, other)]
    return weights(one) == weights(other) and predictions[0] == predictions[1]


def divided(folder: Path, *names: str) -> Path:
    """Split folders of two classes, each part with images of its own."""
    for seed, name in enumerate(names):
        save_images(folder / name, {"dark": 4, "light": 4}, seed=seed)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_every_file_that_is_promised(
    shared_images: Path, shared_teacher: str, tmp_path: Path, method: str
) -> None:
    run = trained(shared_images, shared_teacher, tmp_path / "run", "--method", method)
    selected = {"plan.json"} if method in ("dual", "selection") else set()
    names = {path.name for path in run.iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert names == FILES | selected | events
    assert len(events) == 1
    assert {path.name for path in (run / "model").iterdir()} == {"config.json", "model.safetensors", "README.md"}

    metrics = read_json(run / "metrics.json")
    assert metrics.keys() >= METRICS
    assert (metrics["num_train"], metrics["num_test"]) == (24, 6)
    assert metrics["per_class"].keys() == {"dark", "grey", "light"}
    assert metrics["best_test_epoch"] is None

    history = rows(run / "history.csv")
    assert [row["epoch"] for row in history] == ["1"]
    assert math.isfinite(float(history[0]["loss"]))
    assert (history[0]["loss_skd"] != "") == (method == "dual")

    environment = read_json(run / "environment.json")
    assert environment.keys() >= {"packages", "device", "precision", "seeds", "commit"}
    assert environment["seeds"] == {"seed": 0, "split_seed": 0}
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert 'src="data:' in page


def test_predictions_hold_each_test_image_once_with_a_probability_a_class(shared_run: Path) -> None:
    predicted = rows(shared_run / "predictions.csv")
    columns = ["path", "label", "prediction", "probability_dark", "probability_grey", "probability_light"]
    assert list(predicted[0]) == columns
    held_out = [row["image_path"] for row in rows(shared_run / "split.csv") if row["split"] == "test"]
    assert [row["path"] for row in predicted] == held_out
    for row in predicted:
        probabilities = {name: float(row[f"probability_{name}"]) for name in ("dark", "grey", "light")}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-6)
        assert row["prediction"] == max(probabilities, key=probabilities.__getitem__)
        assert row["label"] == row["path"].partition("/")[0]


def test_the_plan_gives_each_width_with_both_index_lists_and_the_status_of_each_tensor(shared_run: Path) -> None:
    plan = read_json(shared_run / "plan.json")
    for width in plan["widths"].values():
        assert len(width["student_indices"]) == len(width["auxiliary_indices"]) == width["student_size"]
        assert max(width["student_indices"] + width["auxiliary_indices"]) < width["teacher_size"]
    assert plan["student_tensors"].keys() == load_file(shared_run / "model" / "model.safetensors").keys()
    assert plan["teacher_tensors"]["head.weight"] == "dropped: the classifier is always new"


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    shared_images: Path, shared_teacher: str, shared_run: Path, tmp_path: Path
) -> None:
    again = trained(shared_images, shared_teacher, tmp_path / "again")
    assert same_outcome(shared_run, again)
    other = trained(shared_images, shared_teacher, tmp_path / "other", "--seed", 1)
    assert weights(other) != weights(shared_run)


def test_config_yaml_repeats_its_run_bit_for_bit(shared_images: Path, shared_teacher: str, tmp_path: Path) -> None:
    changed = ("--seed", 5, "--rule", "random", "--fraction", 0.5, "--alpha", 0.3, "--split-seed", 2, "--swap-roles")
    first = trained(shared_images, shared_teacher, tmp_path / "first", *changed)
    answer = command("train", "--config", first / "config.yaml", "--output", tmp_path / "second")
    assert answer.code == 0, answer.err
    assert same_outcome(first, tmp_path / "second")
    assert (first / "config.yaml").read_bytes() == (tmp_path / "second" / "config.yaml").read_bytes()
    assert (first / "split.csv").read_bytes() == (tmp_path / "second" / "split.csv").read_bytes()


def test_words_on_the_command_line_win_over_the_file(shared_run: Path, tmp_path: Path) -> None:
    answer = command("train", "--config", shared_run / "config.yaml", "--output", tmp_path / "run", "--epochs", 2)
    assert answer.code == 0, answer.err
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["epochs"] == 2
    assert len(rows(tmp_path / "run" / "history.csv")) == 2


def test_a_split_given_back_is_used_again(shared_images: Path, shared_teacher: str, tmp_path: Path) -> None:
    first = trained(shared_images, shared_teacher, tmp_path / "first", "--split-seed", 7)
    split = first / "split.csv"
    second = trained(shared_images, shared_teacher, tmp_path / "second", "--split", split)
    assert (second / "split.csv").read_bytes() == split.read_bytes()
    assert same_outcome(first, second)


def test_a_run_is_marked_unfinished_while_it_runs_and_after_it_fails(
    shared_images: Path, shared_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, marker = tmp_path / "run", tmp_path / "run" / "UNFINISHED"
    seen = []

    def failing(*arguments: Any, **settings: Any) -> Any:
        del arguments, settings
        seen.append(marker.read_text())
        raise RuntimeError("lightning struck")

    monkeypatch.setattr(pipeline, "fit", failing)
    with pytest.raises(RuntimeError, match="lightning struck"):
        train(shared_images, shared_teacher, run)
    assert seen == [f"Unfinished: process {os.getpid()} on {platform.node()} works here.\n"]
    assert marker.read_text() == "This run did not finish: lightning struck\n"
    assert not (run / "metrics.json").exists()
    for words in (("evaluate", run), ("predict", run, shared_images)):
        line = refusal(command(*words))
        advice = "Repeat it with --resume, or replace it with --force."
        assert line == f"{run}: the run has not finished. {advice}"


def test_an_interrupted_run_says_stopped_and_stays_unfinished(
    shared_images: Path, shared_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **settings: Any) -> Any:
        del arguments, settings
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "fit", interrupted)
    answer = train(shared_images, shared_teacher, tmp_path / "run")
    assert answer.code == 130
    assert answer.err.splitlines()[-1] == "twinbud: interrupted"
    assert (tmp_path / "run" / "UNFINISHED").read_text() == "This run did not finish: KeyboardInterrupt\n"


def test_force_replaces_a_run_whole_finished_or_not(shared_images: Path, shared_teacher: str, tmp_path: Path) -> None:
    run = trained(shared_images, shared_teacher, tmp_path / "run")
    before = weights(run)
    assert "replace it with --force" in refusal(train(shared_images, shared_teacher, run, "--seed", 3))
    assert weights(run) == before
    trained(shared_images, shared_teacher, run, "--seed", 3, "--method", "timm", "--force")
    assert weights(run) != before
    assert not (run / "plan.json").exists()
    (run / "UNFINISHED").touch()
    (run / "config.yaml").unlink()
    trained(shared_images, shared_teacher, run, "--force")
    assert same_outcome(run, run)
    assert not (run / "UNFINISHED").exists()


@pytest.mark.parametrize("name", ["thesis.tex", "config.yaml", "metrics.json"])
def test_force_never_replaces_a_folder_that_is_no_run(
    shared_images: Path, shared_teacher: str, tmp_path: Path, name: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("years of work")
    line = refusal(train(shared_images, shared_teacher, tmp_path / "mine", "--force"))
    assert "the folder holds files that are not of a run" in line
    assert (tmp_path / "mine" / name).read_text() == "years of work"


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
    monkeypatch.setattr(pipeline, "fit", spy := Spy())
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
    monkeypatch.setattr(pipeline, "fit", spy := Spy())
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

    whole = pipeline.predict_rows
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
    best = pipeline.best_test_pass(history)
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


def test_cheap_mistakes_are_found_before_the_teacher_is_opened_and_an_image_decoded(
    shared_images: Path, shared_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    for module, name in ((context, "decode_images"), (pipeline, "open_initialization")):
        monkeypatch.setattr(module, name, lambda *arguments: opened.append(arguments))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for words in (("--split", tmp_path / "none.csv"), ("--device", "cuda")):
        assert str(words[0] if words[0] == "--device" else words[1]) in refusal(
            train(shared_images, shared_teacher, tmp_path / "run", *words)
        )
    assert opened == []


@pytest.mark.parametrize("method", ["dual", "selection", "timm"])
def test_training_from_a_selection_equals_training_from_the_teacher_that_is_gone(
    shared_images: Path, tmp_path: Path, method: str
) -> None:
    teacher = save_vit_teacher(tmp_path / "teacher")
    direct = trained(shared_images, teacher, tmp_path / "direct", "--method", method)
    assert command("select", "--teacher", teacher, "--output", tmp_path / "selected").code == 0
    shutil.rmtree(tmp_path / "teacher")
    words = ("--data", shared_images, "--selected", tmp_path / "selected", "--method", method)
    answer = command("train", *words, *SMALL, "--output", tmp_path / "carried")
    assert answer.code == 0, answer.err
    assert same_outcome(direct, tmp_path / "carried")


def test_a_run_from_a_selection_says_what_its_plan_says_and_its_config_repeats_it(
    shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    selected, run = tmp_path / "selected", tmp_path / "run"
    plan = ("--rule", "random", "--attention", "heads", "--swap-roles", "--seed", 7)
    assert command("select", "--teacher", shared_teacher, *plan, "--output", selected).code == 0
    answer = command("train", "--data", shared_images, "--selected", selected, *SMALL, "--output", run)
    assert answer.code == 0, answer.err
    settings = yaml.safe_load((run / "config.yaml").read_text())
    planned = {"teacher": shared_teacher, "selected": str(selected), "student": "half", "rule": "random"}
    assert settings.items() >= (planned | {"attention": "heads", "swap_roles": True, "seed": 0}).items()
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<dd>random (seed 7), heads, roles swapped</dd>" in page
    assert f"<dd>{shared_teacher}</dd>" in page
    answer = command("train", "--config", run / "config.yaml", "--output", tmp_path / "again")
    assert answer.code == 0, answer.err
    assert same_outcome(run, tmp_path / "again")


def test_a_selection_takes_the_place_of_the_teacher_of_a_file(
    shared_images: Path, shared_teacher: str, shared_run: Path, tmp_path: Path
) -> None:
    selected = tmp_path / "selected"
    assert command("select", "--teacher", shared_teacher, "--rule", "random", "--output", selected).code == 0
    words = ("train", "--config", shared_run / "config.yaml", "--output", tmp_path / "run")
    assert command(*words, "--selected", selected).code == 0
    direct = trained(shared_images, shared_teacher, tmp_path / "direct", "--rule", "random")
    assert same_outcome(tmp_path / "run", direct)
    assert "--rule: 'uniform' contradicts" in refusal(
        command(*words, "--selected", selected, "--rule", "uniform", "--force")
    )


@pytest.mark.parametrize(
    "words",
    [
        ("--swap-roles",),
        ("--rule", "consecutive"),
        ("--rule", "random"),
        ("--rule", "random-inconsistent"),
        ("--attention", "heads"),
    ],
    ids=" ".join,
)
def test_every_variant_of_selection_trains_and_changes_the_outcome(
    shared_images: Path, shared_teacher: str, shared_run: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    run = trained(shared_images, shared_teacher, tmp_path / "run", *words)
    assert weights(run) != weights(shared_run)


def test_the_run_that_train_returns_is_the_one_on_the_disk(
    shared_images: Path, shared_teacher: str, shared_run: Path, tmp_path: Path
) -> None:
    settings = {
        "profile": "paper", "data": str(shared_images), "teacher": shared_teacher, "image_size": 28, "epochs": 1,
        "batch_size": 8, "precision": "float32",
    }  # fmt: skip
    run = pipeline.train(run_config(settings, output=tmp_path / "run"))
    assert run.folder == tmp_path / "run"
    assert run.metrics == RunMetrics.from_json(read_json(run.folder / "metrics.json"))
    assert run.summary == read_summary(run.folder / "summary.json")
    assert same_outcome(run.folder, shared_run)


def test_decoded_images_are_kept_for_the_next_run_unless_that_is_declined(
    shared_images: Path, shared_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWINBUD_CACHE", str(tmp_path / "cache"))
    first = trained(shared_images, shared_teacher, tmp_path / "first", "--no-pixel-cache")
    assert not (tmp_path / "cache").exists()
    second = trained(shared_images, shared_teacher, tmp_path / "second")
    assert sum(path.is_file() for path in (tmp_path / "cache" / "pixels").rglob("*")) == 30
    monkeypatch.setattr(image_store, "decode", None)  # nothing is decoded any more
    third = trained(shared_images, shared_teacher, tmp_path / "third")
    predictions = [(run / "predictions.csv").read_bytes() for run in (first, second, third)]
    assert predictions[0] == predictions[1] == predictions[2]


def test_a_run_leaves_the_process_as_many_threads_as_it_had(
    shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    run = trained(shared_images, shared_teacher, tmp_path / "run", "--threads", before + 1)
    assert read_json(run / "environment.json")["threads"] == before + 1
    assert torch.get_num_threads() == before
