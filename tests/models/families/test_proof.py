"""Every width of every described family, proved on small randomized networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from timm.layers.mlp import GluMlp
from timm.models.mlp_mixer import MlpMixer

from helpers.convolutional import CONVOLUTIONAL, convolutional
from helpers.widths import check_coverage, check_that_no_tensor_can_be_left_out, check_widths, images
from twinbud.models.families.base import TimmModel
from twinbud.models.families.registry import family_of
from twinbud.models.invariance import TOLERANCE, PermutationTest, randomize
from twinbud.models.narrowing import narrow, narrowed_shapes
from twinbud.models.outline import outline
from twinbud.models.widths import Axis, Concatenation, TensorSpec, divided_sizes, width_sizes

Network = tuple[str, dict[str, Any], int]
"""timm's name, its arguments and the image size in pixels."""
VIT = {"img_size": 32, "embed_dim": 32, "num_heads": 4, "depth": 2}
CONVNEXT = {"dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1)}
EVA = {**VIT, "init_values": 1.0}
SWIN = {"img_size": 32, "embed_dim": 8, "depths": (1, 2, 1), "num_heads": (2, 2, 4), "window_size": 2}
MIXER = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "num_blocks": 2}
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
    "vit-query-norms": ("vit_tiny_patch16_224", {**VIT, "qk_norm": True}, 32),
    "dinov3": ("vit_small_patch16_dinov3", EVA, 32),
    "dinov3-biases": ("vit_small_patch16_dinov3_qkvb", EVA, 32),
    "dinov3-gated": ("vit_7b_patch16_dinov3", EVA, 32),
    "eva": ("eva_giant_patch14_224", {**VIT, "img_size": 28}, 28),
    "eva02": ("eva02_base_patch16_clip_224", VIT, 32),
    "eva02-post-norm": ("eva02_enormous_patch14_clip_224", {**VIT, "img_size": 28}, 28),
    "eva-shared-keys": ("vit_base_patch16_sapiens2", {**VIT, "num_heads": 8, "num_kv_heads": 4}, 32),
    "swin": ("swin_tiny_patch4_window7_224", SWIN, 32),
    "swin-padded": ("swin_tiny_patch4_window7_224", {**SWIN, "window_size": 3, "always_partition": True}, 32),
    "mixer": ("small_mixer", MIXER, 16),
    "gmixer": ("small_mixer", {**MIXER, "mlp_ratio": (1.0, 4.0), "mlp_layer": GluMlp}, 16),
    "resmlp": ("small_resmlp", MIXER, 16),
    "gmlp": ("small_gmlp", MIXER, 16),
}


def build(name: str, num_classes: int = 5, **changes: Any) -> tuple[TimmModel, int]:
    if name in CONVOLUTIONAL:
        return convolutional(name)
    architecture, arguments, image_size = NETWORKS[name]
    torch.manual_seed(0)
    return timm.create_model(architecture, num_classes=num_classes, **{**arguments, **changes}), image_size


@pytest.mark.parametrize("name", [*NETWORKS, *CONVOLUTIONAL])
def test_permuting_a_width_in_all_its_tensors_changes_nothing(name: str) -> None:
    check_widths(*build(name))


@pytest.mark.parametrize("name", [*NETWORKS, *CONVOLUTIONAL])
def test_a_width_without_any_one_of_its_tensors_is_found_wrong(name: str) -> None:
    check_that_no_tensor_can_be_left_out(*build(name))


@pytest.mark.parametrize("name", NETWORKS)
def test_whatever_differs_between_teacher_and_student_runs_along_a_width(name: str) -> None:
    model, _ = build(name)
    family = family_of(model)
    half = {"embed_dim": 4} if isinstance(model, MlpMixer) else family.narrow_arguments(NETWORKS[name][0], model, 2)
    student, _ = build(name, num_classes=3, **half)
    check_coverage(model, student, family)


@pytest.mark.parametrize("name", ["vit-query-norms", "dinov3"])
def test_channels_inside_a_head_have_roles_where_heads_must_be_selected_whole(name: str) -> None:
    """If they had none, permuting them alike in queries, keys and values would change nothing, as in a plain ViT."""
    model, image_size = build(name)
    randomize(model)
    head_size = model.blocks[0].attn.head_dim

    def inside_heads(axis: Axis | Concatenation | None) -> Axis | Concatenation | None:
        if not isinstance(axis, Axis) or axis.kind != "heads":
            return axis
        return replace(axis, width=axis.width.replace("heads", "attention"), unit=1, head_size=head_size)

    specs: dict[str, TensorSpec] = {
        tensor: replace(spec, axes=tuple(inside_heads(axis) for axis in spec.axes))
        for tensor, spec in family_of(model).specs(model).items()
    }
    assert PermutationTest(model, images(image_size)).relative_change(specs, ["attention/blocks.0"]) > TOLERANCE


@pytest.mark.parametrize(
    ("teacher", "student", "arguments"),
    [
        ("vgg19_bn", "vgg16_bn", {}),
        ("resnet50", "resnet50", {"channels": (32, 64, 128, 256)}),
        ("resnet34d", "resnet18d", {"channels": (32, 64, 128, 256), "stem_width": 16}),
        ("resnext50_32x4d", "resnext50_32x4d", {"channels": (32, 64, 128, 256)}),
        ("seresnet50", "seresnet50", {"channels": (32, 64, 128, 256)}),
        ("wide_resnet50_2", "resnet50", {}),
        ("efficientnet_b2", "efficientnet_b0", {}),
        ("mobilenetv3_large_100", "mobilenetv3_large_075", {}),
        ("mobilenetv2_140", "mobilenetv2_100", {}),
    ],
)
def test_whatever_differs_between_two_networks_of_timm_runs_along_a_width(
    teacher: str, student: str, arguments: dict[str, Any]
) -> None:
    larger, smaller = (
        outline(name, "test", num_classes=2, **args) for name, args in ((teacher, {}), (student, arguments))
    )
    family = family_of(larger)
    names = family.teacher_names(larger, smaller)
    specs, state = family.specs(larger), larger.state_dict()
    for name, tensor in smaller.state_dict().items():
        source = names[name]
        if specs[source].role != "classifier":
            for dimension, (before, after) in enumerate(zip(state[source].shape, tensor.shape, strict=True)):
                assert before == after or specs[source].axes[dimension] is not None, f"{name}[{dimension}]"


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_half_of_every_width_gives_a_network_that_runs(name: str) -> None:
    model, image_size = build(name)
    family = family_of(model)
    specs, state = family.specs(model), model.state_dict()
    shapes = narrowed_shapes(specs, state, divided_sizes(specs, state, 2))
    model = narrow(model, shapes).eval()
    assert model(torch.zeros(2, 3, image_size, image_size)).shape == (2, 5)
    assert width_sizes(family.specs(model), model.state_dict()) == divided_sizes(specs, state, 2)
