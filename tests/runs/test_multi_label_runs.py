"""Runs on several labels an image: training, folder, predictions and evaluation agree on the task."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from helpers.command import refusal, train, trained, twinbud
from helpers.labelled import save_findings, save_table
from helpers.runs import read_json, rows
from twinbud.runs.inference import predict
from twinbud.runs.report import rebuild_report

TASK = ("--label-columns", "left,right,rare")
QUICK = ("--method", "timm", *TASK, "--epochs", 6, "--learning-rate", 3e-3, "--mixup", 0.2, "--balance", "weights")


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_findings(tmp_path_factory.mktemp("findings") / "set")


@pytest.fixture(scope="module")
def run(findings: Path, shared_teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(findings, shared_teacher, tmp_path_factory.mktemp("multi") / "run", *QUICK)


def test_the_folder_says_task_and_thresholds_and_plain_timm_opens_it(run: Path) -> None:
    config = read_json(run / "model" / "config.json")
    assert (config["task"], config["label_names"]) == ("multi-label", ["left", "right", "rare"])
    assert len(config["thresholds"]) == 3
    model = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True).eval()
    assert model(torch.zeros(1, 3, 28, 28)).shape == (1, 3)
    assert "sigmoid()" in (run / "model" / "README.md").read_text(encoding="utf-8")


def test_predictions_name_labels_by_the_thresholds_of_the_folder(run: Path, findings: Path) -> None:
    thresholds = read_json(run / "model" / "config.json")["thresholds"]
    for row in rows(run / "predictions.csv"):
        names = ("left", "right", "rare")
        shown = [
            name for name, least in zip(names, thresholds, strict=True) if float(row[f"probability_{name}"]) >= least
        ]
        assert row["prediction"] == ("|".join(shown) or "no finding")
    found, _ = predict(run / "model", [findings.parent])
    assert found.asked.to_json()["thresholds"] == thresholds


def test_evaluate_gives_the_metrics_of_the_run_again(run: Path, tmp_path: Path) -> None:
    answer = twinbud("evaluate", run, "--output", tmp_path / "evaluation")
    assert answer.code == 0, answer.err
    again, metrics = read_json(tmp_path / "evaluation" / "metrics.json"), read_json(run / "metrics.json")
    for name in ("auroc_macro", "average_precision_macro", "f1_macro", "f1_micro", "per_class", "confidence_intervals"):
        assert again[name] == metrics[name]
    assert metrics["patients"]["task"] == "multi-label"


def test_images_without_any_known_label_are_refused(run: Path, tmp_path: Path) -> None:
    unknown = {"left": "", "right": "-1", "rare": "", "patient_id": "new"}
    other = save_table(tmp_path / "other", [unknown] * 2, [80, 120], seed=9)
    answer = twinbud("evaluate", run, "--data", other)
    assert answer.code == 2
    problem = "no label of any image is known. Give images of which at least one label is known."
    assert answer.err.splitlines()[-1] == f"twinbud: {other}: {problem}"


def test_the_report_names_the_labels_and_can_be_written_again(run: Path, tmp_path: Path) -> None:
    page = rebuild_report(run, output=tmp_path / "page.html").read_text(encoding="utf-8")
    assert "macro AUROC of 3 labels" in page
    assert "Confusion matrix" not in page
    assert "Average precision" in page


def test_best_teaches_labels_through_a_tuned_teacher(findings: Path, shared_teacher: str, tmp_path: Path) -> None:
    fast = ("--epochs", 0, "--tune-epochs", 1, "--tune-min-steps", 0, "--fraction", 0.3)
    run = trained(findings, shared_teacher, tmp_path / "run", "--profile", "best", *TASK, *fast)
    assert read_json(run / "teacher" / "config.json")["task"] == "multi-label"


def test_the_auxiliary_distills_labels_with_unknown_ones(findings: Path, shared_teacher: str, tmp_path: Path) -> None:
    run = trained(findings, shared_teacher, tmp_path / "run", "--method", "dual", *TASK)
    assert float(rows(run / "history.csv")[-1]["loss_skd"]) > 0


@pytest.mark.parametrize("distillation", ["cs-kd", "cs-kd-pair", "tf-kd-reg"])
def test_sources_of_soft_targets_that_need_classes_are_refused(
    distillation: str, findings: Path, shared_teacher: str, tmp_path: Path
) -> None:
    words = ("--method", "dual", *TASK, "--distillation", distillation)
    line = refusal(train(findings, shared_teacher, tmp_path / "run", *words))
    assert f"'{distillation}' contradicts --task multi-label, whose images have no single class" in line
