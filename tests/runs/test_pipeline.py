"""One run from end to end: what it leaves, what repeats it, and what it refuses."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from helpers.command import refusal, train, trained
from helpers.command import twinbud as command
from helpers.runs import read_json, rows, same_outcome, weights
from twinbud.config.loading import run_config
from twinbud.report.model import read_summary
from twinbud.runs import context, fitting, pipeline
from twinbud.runs.result import RunMetrics

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

    monkeypatch.setattr(fitting, "fit", failing)
    with pytest.raises(RuntimeError, match="lightning struck"):
        train(shared_images, shared_teacher, run)
    assert seen == [f"Unfinished: process {os.getpid()} on {platform.node()} works here.\n"]
    assert marker.read_text() == "This run did not finish: lightning struck\n"
    assert not (run / "metrics.json").exists()
    for words in (("evaluate", run), ("predict", run, shared_images)):
        line = refusal(command(*words))
        advice = "Finish it: repeat its 'twinbud train' command with --resume, or with --force to start again."
        assert line == f"{run}: the run has not finished. {advice}"


def test_an_interrupted_run_says_stopped_and_stays_unfinished(
    shared_images: Path, shared_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **settings: Any) -> Any:
        del arguments, settings
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "fit", interrupted)
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
    lacking = {"config.yaml": "metrics.json", "metrics.json": "config.yaml"}.get(name)
    if lacking is None:
        assert f"the folder holds files that are not of a run ({name}). Choose another --output, or move" in line
    else:
        assert f"the folder has files of a run, but no {lacking}: it is not a finished run that --force may" in line
        assert line.endswith("Choose another --output, or delete the folder.")
    assert (tmp_path / "mine" / name).read_text() == "years of work"


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


def test_a_run_leaves_the_process_as_many_threads_as_it_had(
    shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    run = trained(shared_images, shared_teacher, tmp_path / "run", "--threads", before + 1)
    assert read_json(run / "environment.json")["threads"] == before + 1
    assert torch.get_num_threads() == before
