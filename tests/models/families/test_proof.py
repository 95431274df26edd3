"""Every width of every described family, proved on small randomized networks."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from helpers.widths import check_coverage, check_that_no_tensor_can_be_left_out, check_widths
from twinbud.models.families import family_of
from twinbud.models.families.base import TimmModel

Network = tuple[str, dict[str, Any], int]
"""timm's name, its arguments and the image size in pixels."""
VIT = {"img_size": 32, "embed_dim": 32, "num_heads": 4, "depth": 2}
CONVNEXT = {"dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1)}
NETWORKS: dict[str, Network] = {
    "vit": ("vit_tiny_patch16_224", VIT, 32),
    "vit-without-class-token": ("vit_tiny_patch16_224", {**VIT, "class_token": False, "global_pool": "avg"}, 32),
    "deit-distilled": ("deit_tiny_distilled_patch16_224", VIT, 32),
    "dinov2": ("vit_small_patch14_dinov2", {**VIT, "img_size": 28, "init_values": 1.0}, 28),
    "dinov2-registers": ("vit_small_patch14_reg4_dinov2", {**VIT, "img_size": 28, "init_values": 1.0}, 28),
    "dinov2-giant": ("vit_giant_patch14_dinov2", {**VIT, "img_size": 28, "init_values": 1.0, "mlp_ratio": 3}, 28),
    "convnext": ("convnext_tiny", CONVNEXT, 64),
    "convnext-conv-mlp": ("convnext_femto", CONVNEXT, 64),
    "convnextv2": ("convnextv2_tiny", CONVNEXT, 64),
}


def build(name: str) -> tuple[TimmModel, int]:
    architecture, arguments, image_size = NETWORKS[name]
    torch.manual_seed(0)
    return timm.create_model(architecture, num_classes=5, **arguments), image_size


@pytest.mark.parametrize("name", NETWORKS)
def test_permuting_a_width_in_all_its_tensors_changes_nothing(name: str) -> None:
    check_widths(*build(name))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_width_without_any_one_of_its_tensors_is_found_wrong(name: str) -> None:
    check_that_no_tensor_can_be_left_out(*build(name))


@pytest.mark.parametrize("name", NETWORKS)
def test_whatever_differs_between_teacher_and_student_runs_along_a_width(name: str) -> None:
    model, _ = build(name)
    family = family_of(model)
    architecture, arguments, _ = NETWORKS[name]
    student = timm.create_model(architecture, num_classes=3, **{**arguments, **family.half(architecture, model)})
    check_coverage(model, student, family)
