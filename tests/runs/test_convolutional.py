"""Whole runs with students of VGG, ResNet and EfficientNet, most of which timm alone cannot build."""

from __future__ import annotations

import csv
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import twinbud as api
from helpers.builders import save_teacher
from helpers.command import SMALL, refusal, train, trained
from helpers.command import twinbud as command
from helpers.convolutional import save_narrow_teacher
from helpers.runs import read_json, same_outcome
from helpers.stopping import sigterm_at_step
from twinbud.evaluation.predictions import read_predictions
from twinbud.models.model_folder import open_model_folder
from twinbud.models.selection_io import select
from twinbud.models.student_pair import build_student_pair
from twinbud.models.teacher import read_teacher_info
from twinbud.training.ema import ema_update
from twinbud.training.train_step import TrainingStep

NARROW = ("vgg11_bn", "resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_100")
SIZE = ("--image-size", 32)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("teachers")
    narrow = {name: save_narrow_teacher(folder / name, name) for name in NARROW}
    return narrow | {"resnet26": save_teacher(folder / "resnet26", "resnet26", channels=[8, 8, 12, 16])}


def losses(run: Path) -> list[float]:
    with (run / "history.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("architecture", NARROW)
def test_a_run_delivers_a_folder_that_twinbud_opens_and_timm_refuses(
    architecture: str, teachers: dict[str, str], shared_images: Path, tmp_path: Path
) -> None:
    run = trained(shared_images, teachers[architecture], tmp_path / "run", *SIZE)
    assert all(math.isfinite(loss) for loss in losses(run))
    assert read_json(run / "model" / "config.json")["architecture"] == f"{architecture}-narrowed-by-twinbud"
    assert "model = twinbud.open_model(" in (run / "model" / "README.md").read_text(encoding="utf-8")
    for pretrained in (True, False):
        with pytest.raises(RuntimeError, match="Unknown model"):
            timm.create_model(f"local-dir:{run / 'model'}", pretrained=pretrained)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model_folder = open_model_folder(run / "model")
    assert torch.equal(api.open_model(run)(images), model_folder.model(images))
    evaluation = command("evaluate", run, "--output", tmp_path / "evaluation")
    assert evaluation.code == 0, evaluation.err
    files = [folder / "predictions.csv" for folder in (run, tmp_path / "evaluation")]
    first, again = (read_predictions(file, model_folder.task) for file in files)
    assert again.paths == first.paths
    # the weights of the run are channels_last, those of its folder are not: other kernels, which round differently
    np.testing.assert_allclose(again.probabilities, first.probabilities, rtol=1e-5)
    if architecture == NARROW[0]:  # the command knows nothing of the network
        assert command("predict", run / "model", shared_images / "dark").code == 0


def test_half_a_bottleneck_network_opens_with_timm_alone(
    teachers: dict[str, str], shared_images: Path, tmp_path: Path
) -> None:
    run = trained(shared_images, teachers["resnet26"], tmp_path / "run", *SIZE)
    config = read_json(run / "model" / "config.json")
    assert (config["architecture"], config["model_args"]["channels"]) == ("resnet26", [4, 4, 6, 8])
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True).eval()
    assert torch.equal(model(images), api.open_model(run)(images))


def test_training_from_a_selected_vgg_equals_training_from_its_teacher(
    teachers: dict[str, str], shared_images: Path, tmp_path: Path
) -> None:
    shutil.copytree(teachers["vgg11_bn"].removeprefix("local-dir:"), tmp_path / "teacher")
    teacher = f"local-dir:{tmp_path / 'teacher'}"
    direct = trained(shared_images, teacher, tmp_path / "direct", *SIZE)
    assert command("select", "--teacher", teacher, "--output", tmp_path / "selected").code == 0
    shutil.rmtree(tmp_path / "teacher")
    words = ("--data", shared_images, "--selected", tmp_path / "selected", "--output", tmp_path / "carried")
    answer = command("train", *words, *SMALL, *SIZE)
    assert answer.code == 0, answer.err
    assert same_outcome(direct, tmp_path / "carried")


def test_a_stopped_run_of_a_narrow_network_ends_like_a_whole_one(
    teachers: dict[str, str], shared_images: Path, tmp_path: Path
) -> None:
    words = (*SIZE, "--epochs", 3)
    whole = trained(shared_images, teachers["resnet18"], tmp_path / "whole", *words)
    with sigterm_at_step(TrainingStep, 4):
        assert train(shared_images, teachers["resnet18"], tmp_path / "stopped", *words).code != 0
    trained(shared_images, teachers["resnet18"], tmp_path / "stopped", *words, "--resume")
    assert same_outcome(whole, tmp_path / "stopped")


def test_a_delivered_narrow_network_becomes_a_teacher(
    teachers: dict[str, str], shared_images: Path, tmp_path: Path
) -> None:
    """Halved again with weights selected from it, and whole by fine-tuning."""
    first = trained(shared_images, teachers["vgg11_bn"], tmp_path / "first", *SIZE)
    teacher = f"local-dir:{first / 'model'}"
    second = trained(shared_images, teacher, tmp_path / "second", *SIZE)
    shapes = [api.open_model(run).state_dict()["features.0.weight"].shape for run in (first, second)]
    assert shapes[1][0] * 2 == shapes[0][0]
    tuned = trained(shared_images, teacher, tmp_path / "tuned", *SIZE, "--method", "finetune")
    assert api.open_model(tuned).state_dict()["features.0.weight"].shape == shapes[0]


def test_a_fine_tuned_teacher_gives_weights_to_a_narrow_student(
    teachers: dict[str, str], shared_images: Path, tmp_path: Path
) -> None:
    words = ("--tune-teacher", "--tune-epochs", 1, "--tune-min-steps", 0, *SIZE)
    run = trained(shared_images, teachers["resnet18"], tmp_path / "run", *words)
    assert (run / "teacher" / "config.json").is_file()
    assert all(math.isfinite(loss) for loss in losses(run))


@pytest.mark.parametrize("method", ["timm", "kaiming"])
def test_a_random_start_trains_a_narrow_network(
    method: str, teachers: dict[str, str], shared_images: Path, tmp_path: Path
) -> None:
    run = trained(shared_images, teachers["vgg11_bn"], tmp_path / "run", *SIZE, "--method", method)
    assert all(math.isfinite(loss) for loss in losses(run))


def test_the_auxiliary_averages_running_statistics_too(teachers: dict[str, str]) -> None:
    """One step of eq. 7 on a network with batch norm: means and variances, and a copied counter."""
    pair = build_student_pair(select(read_teacher_info(teachers["vgg11_bn"])), image_size=32, num_classes=3)
    assert pair.auxiliary is not None
    before = {name: tensor.clone() for name, tensor in pair.auxiliary.state_dict().items()}
    pair.student.train()(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    ema_update(pair.auxiliary, pair.student, 0.9)
    after, student = pair.auxiliary.state_dict(), pair.student.state_dict()
    for kind in ("running_mean", "running_var"):
        name = f"features.1.{kind}"
        torch.testing.assert_close(after[name], 0.9 * before[name] + 0.1 * student[name])
        assert not torch.equal(after[name], before[name])
    assert after["features.1.num_batches_tracked"] == student["features.1.num_batches_tracked"] == 1


def test_an_image_size_that_a_vgg_cannot_have_is_refused_before_anything_is_decoded(
    teachers: dict[str, str], shared_images: Path, tmp_path: Path
) -> None:
    line = refusal(train(shared_images, teachers["vgg11_bn"], tmp_path / "run", "--image-size", 16))
    assert line.startswith("--image-size: vgg11_bn cannot process images of 16 pixels")
    assert not list(tmp_path.iterdir())
