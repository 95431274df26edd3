"""Families without a residual stream or without selection: what they cannot do is refused clearly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from helpers.builders import DINOV3, save_teacher
from twinbud.config.loading import run_config
from twinbud.core.errors import TwinbudError
from twinbud.models.families import registry
from twinbud.models.families.eva import EvaFamily
from twinbud.models.initialization import open_initialization
from twinbud.models.selection_io import select
from twinbud.models.student_spec import make_student_spec
from twinbud.models.teacher import IMAGENET_MEAN, IMAGENET_STD, read_teacher_info
from twinbud.training.optimizer import lr_scales


def test_recovery_is_refused_in_one_line_before_weights_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EvaFamily, "recovery", None)
    teacher = save_teacher(tmp_path / "teacher", "vit_small_patch16_dinov3", **DINOV3)
    (tmp_path / "teacher" / "model.safetensors").unlink()
    baseline = {"teacher": teacher, "image_size": 32, "method": "timm"}
    assert open_initialization(run_config(baseline, output=Path("run"))).selection is None
    settings = {"teacher": teacher, "image_size": 32, "recover": "labelled"}
    said = r"^--recover: recovery is not implemented for DINOv3/EVA\. .*choose a ViT, ConvNeXt, .* teacher"
    with pytest.raises(TwinbudError, match=said):
        open_initialization(run_config(settings, output=Path("run")))


def test_recovery_of_found_widths_is_refused_with_the_option_that_describes_them(tmp_path: Path) -> None:
    settings = {"teacher": save_teacher(tmp_path / "resnet", "test_resnet"), "image_size": 32, "recover": "labelled"}
    said = (
        r"^--recover: recovery is not possible with --family auto\. "
        "Use --recover none, or --family described with a ViT, "
    )
    with pytest.raises(TwinbudError, match=said):
        open_initialization(run_config({**settings, "family": "auto"}, output=Path("run")))


def test_blocks_that_recovery_does_not_support_are_refused_before_weights_are_opened(tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher", "eva02_tiny_patch14_224", **DINOV3)
    (tmp_path / "teacher" / "model.safetensors").unlink()
    settings = {"teacher": teacher, "image_size": 32, "recover": "labelled", "recover_stream": "channels"}
    said = r"^--recover: recovery does not support biases of queries and values outside their layer"
    with pytest.raises(TwinbudError, match=said):
        open_initialization(run_config(settings, output=Path("run")))


def test_selecting_from_a_network_of_no_known_family_is_refused(tmp_path: Path) -> None:
    teacher_info = read_teacher_info(save_teacher(tmp_path / "resnet", "test_byobnet"))
    for student in ("half", "resnet18"):
        with pytest.raises(TwinbudError, match=r"^selection from a ByobNet: its widths are not described.*finetune"):
            select(teacher_info, student)


def test_a_network_of_no_known_family_has_the_layers_of_timm() -> None:
    """Stem, four stages and classifier, as ``ResNet.group_matcher`` divides them; every parameter has a factor."""
    model: Any = timm.create_model("test_resnet", num_classes=3)
    scales = lr_scales(model, 0.5)
    assert scales.keys() == {name for name, _ in model.named_parameters()}
    assert scales["fc.weight"] == 1.0
    assert scales["layer4.0.conv1.weight"] < 1.0
    assert scales["conv1.0.weight"] < scales["layer1.0.conv1.weight"] < scales["layer2.0.conv1.weight"]


def test_an_image_size_that_a_network_cannot_process_is_refused() -> None:
    student_spec = make_student_spec("swinv2_tiny_window8_256", {}, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert student_spec.timm_arguments(256) == {}
    said = r"^--image-size: swinv2_tiny_window8_256 cannot process images of 64 pixels.* 256"
    with pytest.raises(TwinbudError, match=said):
        student_spec.timm_arguments(64)


def test_stochastic_depth_is_refused_where_timm_has_none() -> None:
    student_spec = make_student_spec("ghostnet_050", {}, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert student_spec.build(image_size=64, num_classes=2).num_classes == 2
    with pytest.raises(TwinbudError, match=r"^--drop-path 0\.1: timm's ghostnet_050 has no stochastic depth"):
        student_spec.build(image_size=64, num_classes=2, drop_path=0.1)


@pytest.mark.parametrize(
    ("architecture", "on_cpu"),
    [("vit_tiny_patch16_224", True), ("convnext_atto", True), ("resnet10t", True), ("tf_efficientnet_lite0", False)],
)
def test_depthwise_convolutions_of_a_plain_network_stay_in_float32_on_a_cpu(architecture: str, on_cpu: bool) -> None:
    with torch.device("meta"):
        model = timm.create_model(architecture)
    family = registry.family_of(model)
    assert family.gains_from_bf16(model, torch.device("cpu")) == on_cpu
    assert family.gains_from_bf16(model, torch.device("cuda"))
