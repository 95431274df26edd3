"""Whole runs whose soft targets are the teacher's logits."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.builders import VIT, save_teacher
from helpers.command import SMALL, refusal, train, trained
from helpers.command import twinbud as command
from twinbud.runs import pipeline

CLASSES = ("dark", "grey", "light")


def named_teacher(folder: Path, classes: tuple[str, ...] = CLASSES, *, seed: int = 0) -> str:
    """A small ViT with a classifier, whose folder names its classes as a model folder of twinbud does."""
    spec = save_teacher(folder, "vit_tiny_patch16_224", seed, num_classes=len(classes), init_values=1e-5, **VIT)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"label_names": list(classes)}))
    return spec


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A teacher with the classes of ``shared_images``; to be read only."""
    return named_teacher(tmp_path_factory.mktemp("teacher") / "vit")


def outcome(run: Path) -> tuple[bytes, list[dict[str, str]]]:
    with (run / "history.csv").open(encoding="utf-8", newline="") as file:
        history = [{name: text for name, text in row.items() if name != "seconds"} for row in csv.DictReader(file)]
    return (run / "model" / "model.safetensors").read_bytes(), history


@pytest.mark.parametrize(
    ("method", "distillation"),
    [("selection", "teacher"), ("timm", "teacher"), ("kaiming", "teacher"), ("dual", "skd+teacher")],
)
def test_every_method_can_learn_from_the_teacher(
    shared_images: Path, teacher: str, tmp_path: Path, method: str, distillation: str
) -> None:
    words = ("--method", method, "--distillation", distillation)
    run = trained(shared_images, teacher, tmp_path / "run", *words)
    weights, history = outcome(run)
    assert all(float(row["loss_skd"]) > 0 for row in history)
    assert weights != outcome(trained(shared_images, teacher, tmp_path / "plain", "--method", method))[0]
    assert f"{distillation}: " in (run / "report.html").read_text(encoding="utf-8")


def test_dual_with_the_teachers_targets_has_no_auxiliary(shared_images: Path, teacher: str, tmp_path: Path) -> None:
    runs = [
        trained(shared_images, teacher, tmp_path / method, "--method", method, "--distillation", "teacher")
        for method in ("dual", "selection")
    ]
    assert outcome(runs[0]) == outcome(runs[1])


def test_the_teacher_is_used_next_to_a_selection_from_another_place(
    shared_images: Path, teacher: str, tmp_path: Path
) -> None:
    assert command("select", "--teacher", teacher, "--output", tmp_path / "selected").code == 0
    words = ("--method", "selection", "--distillation", "teacher")
    direct = trained(shared_images, teacher, tmp_path / "direct", *words)
    moved = shutil.copytree(teacher.removeprefix("local-dir:"), tmp_path / "moved")
    run = trained(shared_images, f"local-dir:{moved}", tmp_path / "run", *words, "--selected", tmp_path / "selected")
    assert outcome(run) == outcome(direct)


def test_a_selection_alone_does_not_hold_the_teacher(shared_images: Path, teacher: str, tmp_path: Path) -> None:
    assert command("select", "--teacher", teacher, "--output", tmp_path / "selected").code == 0
    words = ("--selected", tmp_path / "selected", "--method", "selection", "--distillation", "teacher")
    answer = command("train", "--data", shared_images, "--output", tmp_path / "run", *SMALL, *words)
    assert refusal(answer) == (
        "--distillation: 'teacher' needs the teacher's weights, which --selected does not hold. "
        "Add the --teacher of the selection, or --distillation skd."
    )


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (
            ("dark", "light", "grey"),
            "the classes of the teacher are 'dark', 'light', 'grey', but those of the images are "
            "'dark', 'grey', 'light'. Fine-tune it on these classes with --tune-teacher, or use --distillation skd.",
        ),
        (("dark", "gray", "light"), "the classes of the teacher are 'dark', 'gray', 'light', but those of the images"),
        (("dark", "light"), "the classes of the teacher are 'dark', 'light', but those of the images are"),
    ],
    ids=["order", "spelling", "number"],
)
def test_a_teacher_of_other_classes_is_refused_before_anything_is_written(
    shared_images: Path, tmp_path: Path, classes: tuple[str, ...], said: str
) -> None:
    spec = named_teacher(tmp_path / "vit", classes)
    answer = train(shared_images, spec, tmp_path / "run", "--method", "timm", "--distillation", "teacher")
    assert refusal(answer).startswith(f"{spec}: {said}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("num_classes", "said"),
    [
        (0, "the teacher has no classifier to learn from. Fine-tune it on these classes with --tune-teacher, or use"),
        (1000, "the teacher's classifier has 1,000 classes, but the images have 3."),
    ],
)
def test_a_teacher_whose_classes_have_no_names_is_refused_by_their_number(
    shared_images: Path, tmp_path: Path, num_classes: int, said: str
) -> None:
    spec = save_teacher(tmp_path / "vit", "vit_tiny_patch16_224", num_classes=num_classes, **VIT)
    answer = train(shared_images, spec, tmp_path / "run", "--method", "selection", "--distillation", "teacher")
    assert refusal(answer).startswith(f"{spec}: {said}")
    assert not (tmp_path / "run").exists()


def test_another_teacher_does_not_go_on_from_a_checkpoint(
    shared_images: Path, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student starts at random, so that only the soft targets tell the teachers apart; their place is no matter."""
    run = tmp_path / "run"
    words: tuple[Any, ...] = ("--method", "timm", "--distillation", "teacher", "--checkpoint-seconds", 0)
    whole = trained(shared_images, teacher, tmp_path / "whole", *words)
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "evaluate_student", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(shared_images, teacher, run, *words)
    other = named_teacher(tmp_path / "other", seed=1)
    line = refusal(train(shared_images, other, run, *words, "--resume"))
    assert "the checkpoint was saved with other values of teacher" in line
    moved = shutil.copytree(teacher.removeprefix("local-dir:"), tmp_path / "moved")
    answer = train(shared_images, f"local-dir:{moved}", run, *words, "--resume")
    assert answer.code == 0, answer.err
    assert outcome(run) == outcome(whole)
