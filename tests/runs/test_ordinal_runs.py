"""Runs on grades: training, folder, predictions and evaluation agree on the task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from helpers.command import refusal, train, trained, twinbud
from helpers.labelled import save_grades
from helpers.runs import read_json, rows
from twinbud.runs.inference import predict

GRADES = ("normal", "mild", "severe")
QUICK = ("--method", "timm", "--task", "ordinal", "--classes", ",".join(GRADES), "--epochs", 4, "--learning-rate", 3e-3)


@pytest.fixture(scope="module")
def grades(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_grades(tmp_path_factory.mktemp("grades") / "set", GRADES, num_patients=5)


@pytest.fixture(scope="module")
def run(grades: Path, shared_teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(grades, shared_teacher, tmp_path_factory.mktemp("ordinal") / "run", *QUICK)


def test_the_folder_says_the_task_and_plain_timm_opens_it(run: Path) -> None:
    config = read_json(run / "model" / "config.json")
    assert (config["task"], config["label_names"], config["num_classes"]) == ("ordinal", list(GRADES), 2)
    model = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True).eval()
    assert model(torch.zeros(1, 3, 28, 28)).shape == (1, 2)


def test_metrics_of_grades_come_with_intervals_for_images_and_patients(run: Path) -> None:
    metrics = read_json(run / "metrics.json")
    predicted = rows(run / "predictions.csv")
    errors = [abs(GRADES.index(row["label"]) - GRADES.index(row["prediction"])) for row in predicted]
    assert metrics["mae"] == pytest.approx(np.mean(errors))
    assert metrics["within_one"] == pytest.approx(np.mean([error <= 1 for error in errors]))
    assert {"kappa", "mae", "within_one"} <= metrics["confidence_intervals"].keys()
    assert metrics["patients"]["num_test"] == metrics["num_test"] // 2
    assert metrics["patients"]["aggregate"] == "mean"
    assert metrics["patients"]["kappa"] is not None


def test_predict_and_evaluate_follow_the_task(run: Path, grades: Path, tmp_path: Path) -> None:
    found, _ = predict(run / "model", [grades.parent], logits=True, output=tmp_path / "predictions.csv")
    assert found.classes == GRADES
    assert found.logits is not None
    assert found.logits.shape == (30, 2)
    assert {"logit_above_normal", "logit_above_mild"} <= rows(tmp_path / "predictions.csv")[0].keys()
    answer = twinbud("evaluate", run, "--aggregate", "max", "--output", tmp_path / "evaluation")
    assert answer.code == 0, answer.err
    again, metrics = read_json(tmp_path / "evaluation" / "metrics.json"), read_json(run / "metrics.json")
    assert again["kappa"] == metrics["kappa"]
    assert again["patients"]["aggregate"] == "max"


def test_best_teaches_grades_through_a_tuned_teacher(grades: Path, shared_teacher: str, tmp_path: Path) -> None:
    best = ("--profile", "best", "--task", "ordinal", "--classes", ",".join(GRADES), "--balance", "weights")
    fast = ("--epochs", 0, "--tune-epochs", 1, "--tune-min-steps", 0, "--fraction", 0.3)
    run = trained(grades, shared_teacher, tmp_path / "run", *best, *fast)
    assert read_json(run / "teacher" / "config.json")["task"] == "ordinal"
    assert read_json(run / "model" / "config.json")["num_classes"] == 2


@pytest.mark.parametrize("distillation", ["cs-kd-pair", "tf-kd"])
def test_sources_of_soft_targets_that_fit_grades_train(
    distillation: str, grades: Path, shared_teacher: str, tmp_path: Path
) -> None:
    words = ("--method", "dual", "--task", "ordinal", "--classes", ",".join(GRADES), "--distillation", distillation)
    run = trained(grades, shared_teacher, tmp_path / "run", *words)
    assert float(rows(run / "history.csv")[-1]["loss_skd"]) > 0


@pytest.mark.parametrize("distillation", ["cs-kd", "tf-kd-reg"])
def test_sources_of_soft_targets_that_need_classes_are_refused(
    distillation: str, grades: Path, shared_teacher: str, tmp_path: Path
) -> None:
    words = ("--method", "dual", "--task", "ordinal", "--classes", ",".join(GRADES), "--distillation", distillation)
    line = refusal(train(grades, shared_teacher, tmp_path / "run", *words))
    assert f"'{distillation}' contradicts --task ordinal" in line
    assert "Give --distillation skd" in line
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_another_task_is_no_source_of_soft_targets(run: Path, grades: Path, tmp_path: Path) -> None:
    words = ("--method", "finetune", "--student", "same", "--distillation", "teacher")
    line = refusal(train(grades, f"local-dir:{run / 'model'}", tmp_path / "run", *words))
    assert "the teacher was trained for --task ordinal, but the task of the run is single" in line
