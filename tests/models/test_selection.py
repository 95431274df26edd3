"""Sub-networks selected from small random teachers, tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed

from helpers.builders import CONVNEXT, SWIN, VIT, random_model
from twinbud.config.schema import Rule
from twinbud.core.errors import TwinbudError
from twinbud.models.families.registry import family_of
from twinbud.models.rules import uniform
from twinbud.models.selection import SelectionPlan, extract_weights, plan_selection
from twinbud.models.tensor_status import TensorStatus

RULES = get_args(Rule)


def vit(seed: int = 0, **changes: Any) -> Any:
    return random_model("vit_tiny_patch16_224", seed, **{**VIT, **changes})


def half_vit(**changes: Any) -> Any:
    return vit(1, **{"embed_dim": 16, "num_heads": 2, **changes})


def convnext(seed: int = 0, **changes: Any) -> Any:
    return random_model("convnext_tiny", seed, **{**CONVNEXT, **changes})


def half_convnext(**changes: Any) -> Any:
    return convnext(1, **{"dims": [4, 8, 12, 16], "depths": [1, 2, 2, 1], **changes})


def swin(seed: int = 0, **changes: Any) -> Any:
    return random_model("swin_tiny_patch4_window7_224", seed, **{**SWIN, **changes})


def half_swin(**changes: Any) -> Any:
    return swin(1, **{"embed_dim": 4, "num_heads": [1, 2, 4], "depths": [1, 2, 1], **changes})


def mixer(seed: int = 0, **changes: Any) -> Any:
    return random_model("small_mixer", seed, **changes)


def half_mixer(**changes: Any) -> Any:
    return mixer(1, **{"embed_dim": 8, **changes})


PAIRS = {
    "vit": (vit, half_vit),
    "convnext": (convnext, half_convnext),
    "swin": (swin, half_swin),
    "mixer": (mixer, half_mixer),
}


def select(teacher: Any, student: Any, **settings: Any) -> tuple[SelectionPlan, dict[str, Any], dict[str, Any]]:
    family = family_of(teacher)
    plan = plan_selection(teacher, student, family, **settings)
    student_weights, auxiliary = (
        extract_weights(plan, teacher, student, family, pair_role) for pair_role in ("student", "auxiliary")
    )
    return plan, student_weights, auxiliary


def classifier(name: str) -> bool:
    return name.startswith(("head.weight", "head.bias", "head.fc"))


@pytest.mark.parametrize("pair", PAIRS)
def test_uniform_halves_as_the_published_code_of_weight_selection(pair: str) -> None:
    """Its rule is ``arange(m) * (n // m)`` on every dimension, except that it skips ``head.norm``."""
    teacher, student = (make() for make in PAIRS[pair])
    _, student_weights, _ = select(teacher, student)
    teacher_state = teacher.state_dict()
    for name, student_tensor in student.state_dict().items():
        if classifier(name):
            continue
        expected = teacher_state[name]
        for dimension, m in enumerate(student_tensor.shape):
            n = expected.shape[dimension]
            if n != m:
                expected = expected.index_select(dimension, torch.arange(m) * (n // m))
        assert torch.equal(student_weights[name], expected), name


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("pair", PAIRS)
def test_every_inherited_number_is_the_teachers_and_no_two_networks_share_one(pair: str, rule: Rule) -> None:
    teacher, student = (make() for make in PAIRS[pair])
    _, student_weights, auxiliary = select(teacher, student, rule=rule, seed=3)
    specs = family_of(student).specs(student)
    for name, tensor in student_weights.items():
        pool = set(teacher.state_dict()[name].flatten().tolist())
        student_numbers, auxiliary_numbers = (
            set(state[name].flatten().tolist()) for state in (student_weights, auxiliary)
        )
        assert tensor.shape[1:] == auxiliary[name].shape[1:]
        assert student_numbers <= pool
        assert auxiliary_numbers <= pool
        if any(specs[name].axes):  # a Mixer keeps its positions whole
            assert not student_numbers & auxiliary_numbers, name


@pytest.mark.parametrize("rule", ["uniform", "consecutive", "random"])
@pytest.mark.parametrize("pair", PAIRS)
def test_tensors_of_one_width_are_cut_at_the_same_indices(pair: str, rule: Rule) -> None:
    teacher, student = (make() for make in PAIRS[pair])
    width = "residual" if pair in ("vit", "mixer") else "stage/0"
    # write each channel's number into every tensor of the width; what comes out must agree everywhere
    names = {
        "vit": ["norm.weight", "norm.bias", "blocks.0.norm1.weight", "blocks.1.mlp.fc2.bias", "patch_embed.proj.bias"],
        "convnext": ["stem.0.bias", "stem.1.weight", "stages.0.blocks.0.norm.bias", "stages.1.downsample.0.weight"],
        "swin": ["patch_embed.proj.bias", "patch_embed.norm.weight", "layers.0.blocks.0.mlp.fc2.bias"],
        "mixer": ["stem.proj.bias", "norm.weight", "blocks.1.norm1.bias", "blocks.2.mlp_channels.fc2.bias"],
    }[pair]
    state = teacher.state_dict()
    for name in names:
        state[name].copy_(torch.arange(len(state[name])))
    plan, student_weights, auxiliary = select(teacher, student, rule=rule, seed=1)
    for name in names:
        assert student_weights[name].int().tolist() == list(plan.widths[width].student_indices)
        assert auxiliary[name].int().tolist() == list(plan.widths[width].auxiliary_indices)


@pytest.mark.parametrize("attention", ["interleaved", "heads"])
@pytest.mark.parametrize("rule", RULES)
def test_queries_keys_and_values_are_indexed_alike(rule: Rule, attention: str) -> None:
    teacher, student = vit(), half_vit()
    inner = 32
    qkv = teacher.blocks[0].attn.qkv.bias.data
    qkv.copy_(torch.arange(3 * inner))
    plan, student_weights, _ = select(teacher, student, rule=rule, attention=attention)
    rows = student_weights["blocks.0.attn.qkv.bias"].int().view(3, 16)
    assert torch.equal(rows[0], rows[1] - inner)
    assert torch.equal(rows[0], rows[2] - 2 * inner)
    if attention == "heads":
        heads = rows[0].view(2, 8)
        assert torch.equal(heads, heads[:, :1] + torch.arange(8))
        assert set((heads[:, 0] % 8).tolist()) == {0}
    del plan


def test_interleaved_uniform_makes_a_head_of_halves_of_two() -> None:
    teacher = vit()
    teacher.blocks[0].attn.qkv.bias.data.copy_(torch.arange(96))
    _, student_weights, _ = select(teacher, half_vit())
    first_head = student_weights["blocks.0.attn.qkv.bias"].int()[:8]
    assert first_head.tolist() == [0, 2, 4, 6, 8, 10, 12, 14]


def test_random_widths_of_one_kind_and_size_share_a_permutation() -> None:
    plan, _, _ = select(vit(), half_vit(), rule="random", seed=5)
    assert plan.widths["mlp/blocks.0"] == plan.widths["mlp/blocks.1"]
    assert plan.widths["residual"].student_indices != plan.widths["attention/blocks.0"].student_indices


def test_random_without_consistency_draws_anew_for_every_tensor_and_dimension() -> None:
    plan, _, _ = select(vit(), half_vit(), rule="random-inconsistent", seed=5)
    assert (
        plan.tensor_widths["blocks.0.norm1.weight[0]"].student_indices
        != plan.tensor_widths["blocks.0.norm1.bias[0]"].student_indices
    )
    assert (
        plan.tensor_widths["blocks.0.attn.proj.weight[0]"].student_indices
        != plan.tensor_widths["norm.weight[0]"].student_indices
    )


@pytest.mark.parametrize("rule", RULES)
def test_swapped_roles_exchange_the_subsets(rule: Rule) -> None:
    teacher, student = vit(), half_vit()
    _, student_weights, auxiliary = select(teacher, student, rule=rule)
    _, swapped_main, swapped_auxiliary = select(teacher, student, rule=rule, swap_roles=True)
    for name, tensor in student_weights.items():
        assert torch.equal(tensor, swapped_auxiliary[name])
        assert torch.equal(auxiliary[name], swapped_main[name])


@pytest.mark.parametrize("pair", PAIRS)
def test_every_tensor_of_both_sides_is_accounted_for(pair: str) -> None:
    teacher, student = (make() for make in PAIRS[pair])
    plan, student_weights, _ = select(teacher, student)
    assert set(plan.student_tensors) == set(student.state_dict())
    assert set(plan.teacher_tensors) == set(teacher.state_dict())
    assert set(student_weights) == {name for name, status in plan.student_tensors.items() if status.kind != "fresh"}
    assert {name for name, status in plan.student_tensors.items() if status.kind == "fresh"} == {
        name for name in student.state_dict() if classifier(name)
    }
    dropped = {name for name, status in plan.teacher_tensors.items() if status.kind == "dropped"}
    assert all(classifier(name) or ".blocks." in name for name in dropped)
    assert (pair in ("convnext", "swin")) == any(".blocks." in name for name in dropped)


def test_a_folded_layer_scale_leaves_the_blocks_function_unchanged() -> None:
    teacher = vit(init_values=0.1)
    family = family_of(teacher)
    plain = vit(2)
    state, folded = family.fold_layer_scale(teacher.state_dict(), set(plain.state_dict()))
    plain.load_state_dict(state)
    images = torch.randn(2, 3, 28, 28)
    torch.testing.assert_close(plain(images), teacher(images), rtol=1e-4, atol=1e-5)
    assert set(folded) == {f"blocks.{block}.ls{number}.gamma" for block in (0, 1) for number in (1, 2)}
    plan, _, _ = select(teacher, half_vit())
    assert str(plan.teacher_tensors["blocks.1.ls2.gamma"]) == "folded: into blocks.1.mlp.fc2"


def test_a_layer_scale_with_a_home_is_selected() -> None:
    plan, student_weights, _ = select(vit(init_values=0.1), half_vit(init_values=0.1))
    assert plan.teacher_tensors["blocks.0.ls1.gamma"] == TensorStatus("selected")
    assert student_weights["blocks.0.ls1.gamma"].shape == (16,)


def test_a_smaller_patch_is_resampled_before_selection() -> None:
    teacher, student = vit(), half_vit(patch_size=4)
    plan, student_weights, _ = select(teacher, student)
    assert str(plan.student_tensors["patch_embed.proj.weight"]) == "resampled: 7×7 → 4×4"
    whole = resample_patch_embed(teacher.patch_embed.proj.weight.data, [4, 4])
    assert torch.equal(student_weights["patch_embed.proj.weight"], whole[list(uniform(32, 16)[0])])


def test_positions_are_resampled_without_antialiasing_to_the_image_size() -> None:
    teacher, student = vit(), half_vit(img_size=14)
    _, student_weights, _ = select(teacher, student)
    family = family_of(student)
    fitted = family.fit_positions(student_weights, student)["pos_embed"]
    expected = resample_abs_pos_embed(teacher.pos_embed.data, [2, 2], num_prefix_tokens=1, antialias=False)
    torch.testing.assert_close(fitted, expected[..., ::2])


def test_widths_that_do_not_divide_overlap_as_little_as_they_can() -> None:
    plan, _, _ = select(vit(), half_vit(embed_dim=24, num_heads=3))
    assert plan.widths["residual"].overlap == 16


def test_the_plan_survives_its_file() -> None:
    for rule in RULES:
        plan, _, _ = select(vit(), half_vit(), rule=rule)
        assert SelectionPlan.from_json(plan.to_json()) == plan


def refused(teacher: Any, student: Any, **settings: Any) -> str:
    with pytest.raises(TwinbudError) as caught:
        select(teacher, student, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_student_wider_than_its_teacher_is_refused() -> None:
    assert "the student is wider than its teacher (" in refused(half_vit(), vit())


def test_a_student_deeper_than_its_teacher_is_refused() -> None:
    assert "at most its depth" in refused(vit(), half_vit(depth=3))


def test_a_student_with_another_head_dimension_is_refused() -> None:
    assert "heads have 4 channels, the teacher's 8" in refused(vit(), half_vit(num_heads=4))


def test_a_student_and_auxiliary_that_would_be_equal_are_refused_with_their_widths() -> None:
    message = refused(vit(), vit(1))
    assert "all widths are equal (residual 32 = 32, " in message
    assert "--method selection" in message


def test_equal_widths_are_fine_without_an_auxiliary() -> None:
    teacher = vit()
    plan, student_weights, _ = select(teacher, vit(1, depth=1), with_auxiliary=False)
    assert torch.equal(student_weights["norm.weight"], teacher.norm.weight)
    assert str(plan.teacher_tensors["blocks.1.norm1.bias"]) == "dropped: blocks.1 is beyond the student's depth"


def test_register_tokens_without_a_home_are_refused() -> None:
    assert "--student half" in refused(vit(reg_tokens=2), half_vit())


def test_query_norms_without_a_home_are_refused() -> None:
    assert "q_norm" in refused(vit(qk_norm=True), half_vit(), attention="heads")


def test_heads_that_share_query_norms_are_selected_whole() -> None:
    wide, narrow = vit(qk_norm=True), half_vit(qk_norm=True)
    for attention in ("interleaved", "within"):
        refusal = refused(wide, narrow, attention=attention)
        assert refusal.startswith(f"--attention {attention}: heads cannot be made of parts of the teacher's heads")
    plan, student_weights, _ = select(wide, narrow, attention="heads")
    assert plan.widths["heads/blocks.0"].student_indices == (0, 2)
    assert torch.equal(student_weights["blocks.0.attn.q_norm.weight"], wide.blocks[0].attn.q_norm.weight)


def test_a_distillation_token_without_a_home_is_refused() -> None:
    teacher = random_model("deit_tiny_distilled_patch16_224", **VIT)
    assert "prefix tokens" in refused(teacher, half_vit())


def test_mlps_of_another_form_are_refused() -> None:
    assert "mlp.fc1.weight" in refused(convnext(), half_convnext(conv_mlp=True))


def test_a_packed_swiglu_keeps_gate_and_value_in_step(tmp_path: Path) -> None:
    del tmp_path
    from timm.layers.mlp import GluMlp

    wide, narrow = (make(mlp_layer=GluMlp, mlp_ratio=2.0) for make in (vit, half_vit))
    hidden = wide.blocks[0].mlp.fc2.in_features
    wide.blocks[0].mlp.fc1.bias.data.copy_(torch.arange(2 * hidden))
    _, student_weights, _ = select(wide, narrow)
    gate, value = student_weights["blocks.0.mlp.fc1.bias"].int().chunk(2)
    assert torch.equal(gate, value - hidden)
