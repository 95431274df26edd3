"""``--attention within``: students with all heads of their teacher, each of fewer channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.builders import CONVNEXT, DINOV3, SWIN, VIT, random_model, save_teacher
from twinbud.config.effects import setting_notes
from twinbud.config.loading import run_config
from twinbud.config.schema import Attention, ModelConfig
from twinbud.core.errors import TwinbudError
from twinbud.models.families.registry import family_of
from twinbud.models.initialization import describe_student
from twinbud.models.selection import extract_weights, plan_selection
from twinbud.models.selection_io import select
from twinbud.models.student_spec import read_student_spec
from twinbud.models.teacher import read_teacher_info

ViT = "vit_tiny_patch16_224"


def test_half_of_a_vit_keeps_all_heads(tmp_path: Path) -> None:
    teacher_info = read_teacher_info(
        save_teacher(tmp_path / "teacher", ViT, **{**VIT, "num_heads": 1, "embed_dim": 12})
    )
    spec = read_student_spec(teacher_info, "half", attention="within")
    assert spec.model_args["num_heads"] == 1  # which --attention heads could not halve
    student = spec.build(image_size=28, num_classes=3)
    assert (student.embed_dim, student.blocks[0].attn.num_heads, student.blocks[0].attn.head_dim) == (6, 1, 6)


@pytest.mark.parametrize("rule", ["uniform", "random", "consecutive"])
def test_all_heads_of_queries_keys_and_values_keep_the_same_channels(rule: Any) -> None:
    teacher, student = random_model(ViT, **VIT), random_model(ViT, **{**VIT, "embed_dim": 16})
    family = family_of(teacher)
    teacher.blocks[0].attn.qkv.bias.data.copy_(torch.arange(96))
    plan = plan_selection(teacher, student, family, rule=rule, attention="within", seed=1)
    weights = extract_weights(plan, teacher, student, family, "student")
    kept = plan.widths["within/blocks.0"]
    assert (kept.teacher_size, kept.student_size) == (8, 4)
    channels = torch.tensor(kept.student_indices)
    starts = torch.arange(0, 96, 8)[:, None]
    assert torch.equal(weights["blocks.0.attn.qkv.bias"].int().view(12, 4), (starts + channels).int())
    inputs = (torch.arange(0, 32, 8)[:, None] + channels).flatten()
    rows = torch.tensor(plan.widths["residual"].student_indices)
    assert torch.equal(weights["blocks.0.attn.proj.weight"], teacher.blocks[0].attn.proj.weight[rows][:, inputs])


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [("vit_small_patch16_dinov3", DINOV3), ("swin_tiny_patch4_window7_224", SWIN), ("convnext_tiny", CONVNEXT)],
)
def test_other_families_are_refused_before_weights_are_opened(
    architecture: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    teacher_info = read_teacher_info(save_teacher(tmp_path / "teacher", architecture, **arguments))
    (tmp_path / "teacher" / "model.safetensors").unlink()
    with pytest.raises(
        TwinbudError, match=r"--attention within: the heads of this .* cannot get narrower, only those of a"
    ):
        select(teacher_info, attention="within")


@pytest.mark.parametrize("changes", [{"scale_attn_norm": True}, {"attn_layer": "diff"}])
def test_heads_that_another_layer_reads_are_refused(changes: dict[str, Any]) -> None:
    teacher = random_model(ViT, **VIT, **changes)
    with pytest.raises(TwinbudError, match="cannot get narrower"):
        family_of(teacher).check_attention(teacher, "within")


@pytest.mark.parametrize("attention", ["heads", "interleaved", "within"])
@pytest.mark.parametrize(
    ("network", "block"),
    [
        ("vit_pwee_patch16_reg1_gap_256", "ParallelScalingBlock"),
        ("vit_dpwee_patch16_reg1_gap_256", "DiffParallelScalingBlock"),
        ("vit_small_patch16_18x2_224", "ParallelThingsBlock"),
    ],
)
def test_parallel_blocks_are_refused_in_one_line(
    network: str, block: str, attention: Attention, tmp_path: Path
) -> None:
    teacher_info = read_teacher_info(save_teacher(tmp_path / "parallel", network, **VIT))
    said = f"a {block} has no single attention layer, so its widths are not described. Choose another"
    with pytest.raises(TwinbudError, match=said):
        select(teacher_info, attention=attention)
    whole = read_teacher_info(save_teacher(tmp_path / "teacher", ViT, **VIT))
    with pytest.raises(TwinbudError, match=said):
        select(whole, student=network, attention=attention)
    model = random_model(network, **VIT)
    with pytest.raises(TwinbudError, match=f"{said}|'blocks.0.lambda_q1', for which no width is defined"):
        family_of(model).specs(model)


def test_widths_that_are_found_have_no_heads_that_get_narrower(tmp_path: Path) -> None:
    teacher_info = read_teacher_info(save_teacher(tmp_path / "teacher", ViT, **VIT))
    with pytest.raises(TwinbudError, match="--attention within: the heads of a network whose widths are found cannot"):
        select(teacher_info, family="auto", attention="within")


def test_a_random_student_has_the_same_shape(tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher", ViT, **VIT)
    student_spec = describe_student(ModelConfig(teacher=teacher, method="kaiming", attention="within"))
    assert student_spec.template.blocks[0].attn.num_heads == 4
    settings = {"data": "images", "teacher": teacher, "method": "kaiming", "profile": "quick", "attention": "within"}
    assert not [note for note in setting_notes(run_config(settings, output=tmp_path / "run")) if "attention" in note]


def test_heads_of_an_odd_size_cannot_be_halved(tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher", ViT, **{**VIT, "embed_dim": 20})
    with pytest.raises(TwinbudError, match="--attention within: attention heads of 5 channels cannot be divided by 2"):
        read_student_spec(read_teacher_info(teacher), "half", attention="within")


def test_a_student_with_other_heads_is_refused() -> None:
    teacher, student = random_model(ViT, **VIT), random_model(ViT, **{**VIT, "embed_dim": 16, "num_heads": 2})
    with pytest.raises(TwinbudError, match="the student has 2 attention heads, the teacher 4"):
        plan_selection(teacher, student, family_of(teacher), attention="within")
