"""Runs whose weights were selected before, and the variants of selection."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from helpers.builders import save_vit_teacher
from helpers.command import SMALL, refusal, trained
from helpers.command import twinbud as command
from helpers.runs import same_outcome, weights


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
    assert "<dd>random (seed 7); whole heads (--attention heads); roles swapped</dd>" in page
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
