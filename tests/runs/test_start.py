"""What the student, and the teacher to be tuned, are before their first step, and students that take none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.builders import VIT, save_teacher
from helpers.command import SMALL, refusal, train, trained
from helpers.command import twinbud as command
from helpers.stopping import sigterm_at_step
from twinbud.training.train_step import TrainingStep

SELECTION = ("--method", "selection")
PROBE = ("--classifier-start", "probe")
TUNE = (*SELECTION, "--tune-teacher", "--tune-epochs", 1, "--tune-min-steps", 0)
UNTRAINED = ("--recover", "labelled", "--recover-classifier", "on", "--epochs", 0)


def weights(run: Path, folder: str = "model") -> dict[str, torch.Tensor]:
    return load_file(run / folder / "model.safetensors")


def test_a_probe_before_training_changes_the_classifier_alone(
    shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    still = (*SELECTION, "--learning-rate", 0, "--final-learning-rate", 0)
    random = weights(trained(shared_images, shared_teacher, tmp_path / "random", *still))
    probed = weights(trained(shared_images, shared_teacher, tmp_path / "probed", *still, *PROBE))
    assert {name for name in random if not torch.equal(random[name], probed[name])} == {"head.weight", "head.bias"}


def test_the_classifier_of_the_tuned_teacher_starts_from_a_probe_too(
    shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    still = (*TUNE, "--tune-learning-rate", 0, "--final-learning-rate", 0)
    trained(shared_images, shared_teacher, tmp_path / "run", *still, *PROBE)
    words = ("--data", shared_images, "--teacher", shared_teacher, "--method", "probe", *SMALL)
    assert command("train", *words, "--output", tmp_path / "probe").code == 0
    tuned, probe = weights(tmp_path / "run", "teacher"), weights(tmp_path / "probe")
    assert torch.equal(tuned["head.weight"], probe["head.weight"])


def test_a_class_without_labelled_images_leaves_the_classifier_random(
    shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    few = ("--fraction", 0.1, "--subset", "plain")
    answer = train(shared_images, shared_teacher, tmp_path / "run", *SELECTION, *PROBE, *few)
    assert answer.code == 0, answer.err
    assert "the classifier starts at random, since no image of " in answer.err


def test_a_stopped_run_does_not_fit_the_probe_again(shared_images: Path, shared_teacher: str, tmp_path: Path) -> None:
    whole = trained(shared_images, shared_teacher, tmp_path / "whole", *SELECTION, *PROBE)
    passes = [json.loads((tmp_path / "whole" / "metrics.json").read_text(encoding="utf-8"))["num_passes"]]
    with sigterm_at_step(TrainingStep, 2):
        assert train(shared_images, shared_teacher, tmp_path / "run", *SELECTION, *PROBE).code == 75
    resumed = train(shared_images, shared_teacher, tmp_path / "run", *SELECTION, *PROBE, "--resume")
    assert resumed.code == 0, resumed.err
    assert "logistic regression" not in resumed.err
    passes += [json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))["num_passes"]]
    assert passes[0] == passes[1]
    assert (whole / "model/model.safetensors").read_bytes() == (tmp_path / "run/model/model.safetensors").read_bytes()


def test_without_epochs_the_student_stays_as_recovery_leaves_it(
    shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    settings = (*TUNE, *UNTRAINED, "--learning-rate", 0, "--final-learning-rate", 0)
    run = trained(shared_images, shared_teacher, tmp_path / "run", *settings, "--min-steps", 100)
    other = trained(shared_images, shared_teacher, tmp_path / "other", *settings, "--epochs", 1)
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(run).items())
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["epochs"], metrics["num_steps"]) == (0, metrics["tune_num_steps"])
    assert len((run / "history.csv").read_text(encoding="utf-8").splitlines()) == 2  # of the teacher
    assert "The fine-tuning of the teacher; the student is fitted to it" in (run / "report.html").read_text("utf-8")
    assert "none: no optimizer step of the student" in (run / "report.html").read_text(encoding="utf-8")


def test_a_probe_has_no_epochs_to_leave_out(shared_images: Path, shared_teacher: str, tmp_path: Path) -> None:
    words = ("--data", shared_images, "--teacher", shared_teacher, "--method", "probe", *SMALL)
    for name, epochs in (("default", ()), ("none", ("--epochs", 0))):
        assert command("train", *words, *epochs, "--output", tmp_path / name).code == 0
    assert torch.equal(weights(tmp_path / "default")["head.weight"], weights(tmp_path / "none")["head.weight"])


def test_settings_that_an_untrained_student_does_not_use_are_told(
    shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    answer = train(shared_images, shared_teacher, tmp_path / "run", *TUNE, *UNTRAINED, "--learning-rate", 0.25)
    assert answer.code == 0, answer.err
    assert "--learning-rate 0.25 has no effect as the student is not trained (--epochs 0), and" in answer.err


def test_a_network_with_two_classifiers_is_refused_before_anything_is_written(
    shared_images: Path, tmp_path: Path
) -> None:
    teacher = save_teacher(tmp_path / "deit", "deit_tiny_distilled_patch16_224", **VIT)
    for option, value in (("--classifier-start", "probe"), ("--recover-classifier", "on")):
        words = (*TUNE, "--recover", "labelled", option, value)
        line = refusal(train(shared_images, teacher, tmp_path / "run", *words))
        assert line.startswith(f"{option} {value}: the classifier of deit_tiny_distilled_patch16_224 is not one linear")
        assert not (tmp_path / "run").exists()


def test_a_student_with_other_patches_is_refused_before_its_teacher_is_tuned(
    shared_images: Path, tmp_path: Path
) -> None:
    shape = {"patch_size": 14, "img_size": 112, "embed_dim": 128, "num_heads": 4, "depth": 6}
    teacher = save_teacher(tmp_path / "vit", "vit_tiny_patch16_224", **shape)
    words = (*TUNE, "--recover", "labelled", "--student", "test_vit", "--image-size", 112)
    line = refusal(train(shared_images, teacher, tmp_path / "run", *words))
    assert "--recover: the student divides an image into 50 positions, its teacher into 65" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--epochs", 0), "--epochs: 0 would deliver a classifier that nothing has trained. Give at least 1, or"),
        (("--method", "dual", *PROBE), "--classifier-start: 'probe' is not possible with --method dual: its auxil"),
    ],
)
def test_contradictions_are_refused(
    words: tuple[object, ...], line: str, shared_images: Path, shared_teacher: str, tmp_path: Path
) -> None:
    assert line in refusal(train(shared_images, shared_teacher, tmp_path / "run", *SELECTION, *words))
