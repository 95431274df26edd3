"""What is special about DINOv3 and EVA: rotary positions, and heads that are selected whole."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.builders import DINOV3, random_model, save_teacher
from twinbud.core.errors import TwinbudError
from twinbud.models.families.registry import family_of
from twinbud.models.outline import outline
from twinbud.models.rules import uniform
from twinbud.models.selection import extract_weights, plan_selection
from twinbud.models.selection_io import select
from twinbud.models.student_pair import build_student_pair
from twinbud.models.student_spec import read_student_spec
from twinbud.models.teacher import read_teacher_info

SMALL = "vit_small_patch16_dinov3"
PAIRS = {
    "vit_base_patch16_dinov3": SMALL,
    "vit_base_patch16_dinov3_qkvb": "vit_small_patch16_dinov3_qkvb",
    "vit_huge_plus_patch16_dinov3": "vit_small_plus_patch16_dinov3",
    "eva02_small_patch14_224": "eva02_tiny_patch14_224",
    "eva02_large_patch14_224": "eva02_base_patch14_224",
    "vit_base_patch16_rope_224": "vit_small_patch16_rope_224",
    "vit_pe_spatial_base_patch16_512": "vit_pe_spatial_small_patch16_512",
}


def dinov3(seed: int = 0, architecture: str = SMALL, **changes: Any) -> Any:
    return random_model(architecture, seed, **{"init_values": 0.5, **DINOV3, **changes})


@pytest.mark.parametrize(("teacher", "student"), PAIRS.items())
def test_pairs_of_timms_own_names_fit(teacher: str, student: str) -> None:
    spec = read_student_spec(read_teacher_info(teacher), student)
    large = outline(teacher, "teacher")
    plan = plan_selection(large, spec.template, spec.family, attention="heads", with_auxiliary=False)
    heads = plan.widths["heads/blocks.0"]
    assert (heads.teacher_size, heads.student_size) == tuple(
        model.blocks[0].attn.num_heads for model in (large, spec.template)
    )


@pytest.mark.parametrize("architecture", [SMALL, "vit_7b_patch16_dinov3", "eva02_small_patch14_224"])
def test_interleaved_heads_are_refused_before_weights_are_opened(architecture: str) -> None:
    said = r"^--attention interleaved: heads cannot be made of parts .* rotary positions.* Use --attention heads\.$"
    with pytest.raises(TwinbudError, match=said):
        select(read_teacher_info(architecture))


def test_heads_without_rotary_positions_can_be_interleaved() -> None:
    arguments = {"img_size": 28, "patch_size": 14}
    teacher = dinov3(architecture="eva_giant_patch14_224", **arguments)
    student = dinov3(1, architecture="eva_giant_patch14_224", **arguments, embed_dim=16, num_heads=2)
    plan = plan_selection(teacher, student, family_of(teacher))
    assert plan.widths["attention/blocks.0"].student_indices == tuple(range(0, 32, 2))


def test_uniform_halves_take_every_other_channel_and_every_other_head() -> None:
    teacher, student = dinov3(), dinov3(1, embed_dim=16, num_heads=2)
    family = family_of(teacher)
    plan = plan_selection(teacher, student, family, attention="heads")
    found = extract_weights(plan, teacher, student, family, "student")
    heads = [8 * head + channel for head in uniform(4, 2)[0] for channel in range(8)]
    for name, tensor in found.items():
        expected = teacher.state_dict()[name]
        for dimension, size in enumerate(tensor.shape):
            length = expected.shape[dimension]
            if name.endswith("attn.qkv.weight") and dimension == 0:
                rows = [32 * copy + channel for copy in range(3) for channel in heads]
            elif name.endswith("attn.proj.weight") and dimension == 1:
                rows = heads
            else:
                rows = list(range(0, length, length // size))
            expected = expected.index_select(dimension, torch.tensor(rows))
        assert torch.equal(tensor, expected), name
    assert found.keys() == {name for name in student.state_dict() if not name.startswith("head.")}


def test_a_folded_layer_scale_leaves_the_function_unchanged() -> None:
    teacher = dinov3()
    plain = copy.deepcopy(teacher)
    for block in plain.blocks:
        block.gamma_1 = block.gamma_2 = None
    state, folded = family_of(teacher).fold_layer_scale(teacher.state_dict(), set(plain.state_dict()))
    plain.load_state_dict(state)
    assert not any("gamma" in name for name in plain.state_dict())
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(plain(images), teacher(images), rtol=1e-4, atol=1e-5)
    assert folded["blocks.1.gamma_2"] == "blocks.1.mlp.fc2"


@pytest.mark.parametrize(
    ("architecture", "tensor"),
    [
        ("vit_small_patch16_rope_mixed_224", "rope.freqs"),
        ("vit_pe_core_base_patch16_224", "attn_pool.latent"),
    ],
)
def test_a_part_without_a_width_is_refused_by_its_name(architecture: str, tensor: str) -> None:
    model = outline(architecture, "teacher")
    with pytest.raises(TwinbudError, match=rf"Eva has tensor '{tensor}', for which no width is defined"):
        family_of(model).specs(model)


def test_shared_keys_are_halved_with_their_groups_of_queries() -> None:
    arguments = {**DINOV3, "num_heads": 8, "num_kv_heads": 4}
    teacher = random_model("vit_base_patch16_sapiens2", **arguments)
    family = family_of(teacher)
    student = random_model(
        "vit_base_patch16_sapiens2", 1, **{**arguments, **family.narrow_arguments("sapiens", teacher, 2)}
    )
    plan = plan_selection(teacher, student, family, attention="heads")
    found = extract_weights(plan, teacher, student, family, "auxiliary")
    attention = teacher.blocks[0].attn
    assert torch.equal(found["blocks.0.attn.k_proj.bias"], attention.k_proj.bias.view(4, 4)[1::2].flatten())
    assert torch.equal(found["blocks.0.attn.q_proj.bias"], attention.q_proj.bias.view(4, 8)[1::2].flatten())
    with pytest.raises(TwinbudError, match="--attention interleaved"):
        plan_selection(teacher, student, family)


def test_an_odd_number_of_shared_keys_cannot_be_halved() -> None:
    teacher = outline("vit_base_patch16_sapiens2", "teacher", **{**DINOV3, "num_kv_heads": 1})
    with pytest.raises(TwinbudError, match=r"\[1, 1\] key heads of the blocks cannot all be divided by 2"):
        family_of(teacher).narrow_arguments("vit_base_patch16_sapiens2", teacher, 2)


@pytest.mark.parametrize("image_size", [32, 48])
def test_students_run_at_any_multiple_of_the_patch_size(image_size: int, tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher", SMALL, init_values=0.5, num_classes=0, global_pool="", **DINOV3)
    selection = select(read_teacher_info(teacher), attention="heads")
    pair = build_student_pair(selection, image_size=image_size, num_classes=3)
    assert pair.auxiliary is not None
    for network in (pair.student, pair.auxiliary):
        assert network(torch.randn(2, 3, image_size, image_size)).shape == (2, 3)
