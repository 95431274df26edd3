"""Student, auxiliary and the baselines, as they start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from helpers.builders import VIT, save_teacher, save_vit_teacher
from twinbud.config.schema import ModelConfig
from twinbud.core.errors import TwinbudError
from twinbud.models.outline import classifiers
from twinbud.models.selection import PairRole, extract_weights, plan_selection
from twinbud.models.selection_io import Selection, load_selection, select, select_to_folder
from twinbud.models.student_pair import build_baseline, build_pretrained, build_student_pair
from twinbud.models.student_spec import read_student_spec
from twinbud.models.teacher import open_teacher, read_teacher_info


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    return save_vit_teacher(tmp_path / "teacher")


def selection(teacher: str, *, with_auxiliary: bool = True, **settings: Any) -> Selection:
    return select(read_teacher_info(teacher), with_auxiliary=with_auxiliary, **settings)


def test_the_auxiliary_starts_from_its_own_subset_and_not_from_a_copy(teacher: str) -> None:
    pair = build_student_pair(selection(teacher), image_size=28, num_classes=3)
    assert pair.auxiliary is not None
    teacher_state = load_file(Path(teacher.removeprefix("local-dir:")) / "model.safetensors")
    for name in ("blocks.0.norm1.weight", "blocks.1.mlp.fc1.bias", "cls_token"):
        assert torch.equal(pair.student.state_dict()[name], teacher_state[name][..., 0::2])
        assert torch.equal(pair.auxiliary.state_dict()[name], teacher_state[name][..., 1::2])


def test_the_student_starts_alike_in_dual_and_selection(teacher: str) -> None:
    with_auxiliary = build_student_pair(selection(teacher), image_size=28, num_classes=3, seed=4).student
    alone = build_student_pair(selection(teacher, with_auxiliary=False), image_size=28, num_classes=3, seed=4)
    assert alone.auxiliary is None
    for name, tensor in with_auxiliary.state_dict().items():
        assert torch.equal(tensor, alone.student.state_dict()[name]), name


def test_the_two_heads_differ_and_follow_the_seed(teacher: str) -> None:
    one, again, other = (
        build_student_pair(selection(teacher), image_size=28, num_classes=3, seed=s) for s in (0, 0, 1)
    )
    assert one.auxiliary is not None
    assert not torch.equal(one.student.head.weight, one.auxiliary.head.weight)
    assert torch.equal(one.student.head.weight, again.student.head.weight)
    assert not torch.equal(one.student.head.weight, other.student.head.weight)
    assert bool((one.student.head.bias == 0).all())


def test_the_auxiliary_never_asks_for_a_gradient(teacher: str) -> None:
    pair = build_student_pair(selection(teacher), image_size=28, num_classes=3)
    assert pair.auxiliary is not None
    assert not any(parameter.requires_grad for parameter in pair.auxiliary.parameters())
    assert all(parameter.requires_grad for parameter in pair.student.parameters())


def test_a_copy_is_all_of_the_student_its_classifier_too_and_needs_no_second_subset(teacher: str) -> None:
    pair = build_student_pair(
        selection(teacher, with_auxiliary=False), image_size=28, num_classes=3, drop_path=0.1, auxiliary="copy"
    )
    assert pair.auxiliary is not None
    assert not pair.frozen
    assert not any(parameter.requires_grad for parameter in pair.auxiliary.parameters())
    student = pair.student.state_dict()
    for name, tensor in pair.auxiliary.state_dict().items():
        assert torch.equal(tensor, student[name]), name
        assert tensor.data_ptr() != student[name].data_ptr(), name


def test_a_frozen_auxiliary_is_the_other_one_and_none_is_none(teacher: str) -> None:
    both = selection(teacher)
    other, frozen, none = (
        build_student_pair(both, image_size=28, num_classes=3, auxiliary=choice)
        for choice in ("other", "frozen", "none")
    )
    assert (other.frozen, frozen.frozen, none.auxiliary) == (False, True, None)
    assert frozen.auxiliary is not None
    assert other.auxiliary is not None
    for name, tensor in frozen.auxiliary.state_dict().items():
        assert torch.equal(tensor, other.auxiliary.state_dict()[name]), name


def test_half_of_convnext_tiny_is_the_papers_femto(tmp_path: Path) -> None:
    spec = save_teacher(tmp_path / "teacher", "convnext_tiny")
    student_spec = read_student_spec(read_teacher_info(spec), "half")
    assert student_spec.model_args["dims"] == [48, 96, 192, 384]
    assert student_spec.model_args["depths"] == [2, 2, 6, 2]
    assert student_spec.model_args["conv_mlp"] is False
    by_name = read_student_spec(read_teacher_info(spec), "convnext_femto")
    shapes = [
        {n: t.shape for n, t in d.build(image_size=32, num_classes=4).state_dict().items()}
        for d in (student_spec, by_name)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("method", ["timm", "xavier", "kaiming"])
def test_baselines_switch_their_layer_scale_on_and_load_no_weights(teacher: str, method: Any, tmp_path: Path) -> None:
    (tmp_path / "teacher" / "model.safetensors").unlink()
    student_spec = read_student_spec(read_teacher_info(teacher), "half")
    student = build_baseline(student_spec, method, image_size=28, num_classes=3).student
    assert bool((student.blocks[0].ls1.gamma == 1).all())
    kept = build_baseline(student_spec, method, image_size=28, num_classes=3, layer_scale="timm").student
    assert bool((kept.blocks[0].ls1.gamma == 1e-5).all())


def test_the_head_of_cm2_is_that_of_the_student_and_its_body_another_draw(teacher: str) -> None:
    """Method and CM2 differ in what S inherits, not in the luck of their classifiers."""
    grown = build_student_pair(selection(teacher), image_size=28, num_classes=3, seed=4).student
    student_spec = read_student_spec(read_teacher_info(teacher), "half")
    scratch, other = (
        build_baseline(student_spec, "timm", image_size=28, num_classes=3, seed=seed).student for seed in (4, 5)
    )
    assert torch.equal(scratch.head.weight, grown.head.weight)
    assert not torch.equal(scratch.head.weight, other.head.weight)
    assert not torch.equal(scratch.blocks[0].mlp.fc1.weight, grown.blocks[0].mlp.fc1.weight)


@pytest.mark.parametrize("inherited", [False, True])
def test_layer_scale_starts_at_one_where_the_teacher_has_none_and_is_inherited_where_it_has(
    inherited: bool, teacher: str, tmp_path: Path
) -> None:
    """timm's own 1e-5 would switch the blocks off."""
    plain = save_teacher(tmp_path / "plain", "vit_tiny_patch16_224", **VIT)
    teacher_info = read_teacher_info(teacher if inherited else plain)
    student_spec = read_student_spec(read_teacher_info(teacher), "half")
    model = open_teacher(teacher_info).model
    plan = plan_selection(model, student_spec.template, student_spec.family)
    student_pair: tuple[PairRole, PairRole] = ("student", "auxiliary")
    student_weights, auxiliary = (
        extract_weights(plan, model, student_spec.template, student_spec.family, pair_role)
        for pair_role in student_pair
    )
    names = {"teacher": teacher_info.name, "student": "half"}
    chosen = Selection(
        **names, student_spec=student_spec, plan=plan, student_weights=student_weights, auxiliary_weights=auxiliary
    )
    pair = build_student_pair(chosen, image_size=28, num_classes=3)
    for pair_role in (pair.student, pair.auxiliary):
        assert pair_role is not None
        for scale in (pair_role.blocks[0].ls1.gamma, pair_role.blocks[1].ls2.gamma):
            assert bool((scale == 1).all()) != inherited


def test_xavier_and_kaiming_have_their_spread(teacher: str) -> None:
    student_spec = read_student_spec(read_teacher_info(teacher), "half")
    weights = {
        method: build_baseline(student_spec, method, image_size=28, num_classes=3)
        .student.blocks[0]
        .mlp.fc1.weight.detach()
        for method in ("xavier", "kaiming")
    }
    fan_out, fan_in = weights["xavier"].shape
    assert float(weights["xavier"].abs().max()) <= (6 / (fan_in + fan_out)) ** 0.5
    assert float(weights["kaiming"].std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)


def test_a_baseline_follows_its_seed_alone(teacher: str) -> None:
    student_spec = read_student_spec(read_teacher_info(teacher), "half")
    one, again, other = (
        build_baseline(student_spec, "timm", image_size=28, num_classes=3, seed=s).student for s in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one.patch_embed.proj.weight, other.patch_embed.proj.weight)


def test_a_selection_travels_without_its_teacher(teacher: str, tmp_path: Path) -> None:
    select_to_folder(ModelConfig(teacher=teacher), tmp_path / "selected")
    (tmp_path / "teacher" / "model.safetensors").unlink()
    loaded = load_selection(tmp_path / "selected")
    assert loaded.student_spec.mean == (0.5, 0.4, 0.3)
    for image_size in (28, 14):
        pair = build_student_pair(loaded, image_size=image_size, num_classes=3)
        assert pair.student(torch.randn(1, 3, image_size, image_size)).shape == (1, 3)


def test_training_from_a_selection_starts_where_training_from_the_teacher_does(teacher: str, tmp_path: Path) -> None:
    select_to_folder(ModelConfig(teacher=teacher), tmp_path / "selected")
    direct = build_student_pair(selection(teacher), image_size=14, num_classes=3)
    carried = build_student_pair(load_selection(tmp_path / "selected"), image_size=14, num_classes=3)
    for one, other in ((direct.student, carried.student), (direct.auxiliary, carried.auxiliary)):
        assert one is not None
        assert other is not None
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_selection_in_half_precision_is_half_the_size(teacher: str, tmp_path: Path) -> None:
    for name, half in (("whole", False), ("half", True)):
        select_to_folder(ModelConfig(teacher=teacher), tmp_path / name, half_precision=half)
    sizes = [(tmp_path / name / "student.safetensors").stat().st_size for name in ("half", "whole")]
    assert 0.4 < sizes[0] / sizes[1] < 0.7
    assert load_selection(tmp_path / "half").student_weights["norm.weight"].dtype == torch.float32


def test_weights_that_the_plan_does_not_describe_are_refused(teacher: str, tmp_path: Path) -> None:
    for seed in (0, 1):
        select_to_folder(ModelConfig(teacher=teacher, rule="random"), tmp_path / str(seed), seed=seed)
    (tmp_path / "1" / "student.safetensors").replace(tmp_path / "0" / "student.safetensors")
    with pytest.raises(TwinbudError, match=r"the checksum differs from that in plan\.json"):
        load_selection(tmp_path / "0")


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ("vit_tinny_patch16_224", "Did you mean 'vit_tiny_patch16_224'?"),
        ("convnext_femto", "convnext_femto is a ConvNeXt, but the teacher is a ViT"),
    ],
)
def test_a_student_that_cannot_be_is_refused(teacher: str, student: str, said: str) -> None:
    with pytest.raises(TwinbudError) as caught:
        read_student_spec(read_teacher_info(teacher), student)
    assert said in str(caught.value)


def test_an_odd_number_of_heads_cannot_be_halved(tmp_path: Path) -> None:
    spec = save_teacher(tmp_path / "odd", "vit_tiny_patch16_224", img_size=28, patch_size=7, embed_dim=24, depth=1)
    with pytest.raises(TwinbudError, match=r"3 attention heads cannot be divided by 2"):
        read_student_spec(read_teacher_info(spec), "half")


def test_an_image_size_that_the_patch_does_not_divide_is_refused_with_two_that_fit(teacher: str) -> None:
    student_spec = read_student_spec(read_teacher_info(teacher), "half")
    with pytest.raises(
        TwinbudError, match=r"30 is not a multiple of the patch size, 7 pixels\. Use --image-size 28 or 35\."
    ):
        student_spec.timm_arguments(30)


def test_a_whole_network_keeps_all_its_weights_but_those_of_the_classifier(tmp_path: Path) -> None:
    for architecture in ("test_resnet", "test_efficientnet"):
        teacher_info = read_teacher_info(save_teacher(tmp_path / architecture, architecture, num_classes=3))
        weights = open_teacher(teacher_info).model.state_dict()
        student_spec = read_student_spec(teacher_info, "same")
        one, again, other = (
            build_pretrained(student_spec, weights, image_size=40, num_classes=3, seed=seed).student
            for seed in (0, 0, 1)
        )
        head = classifiers(architecture)[0]
        for name, tensor in one.state_dict().items():
            if name.startswith(f"{head}."):
                assert not torch.equal(tensor, weights[name]), name
            else:
                assert torch.equal(tensor, weights[name]), name
        assert torch.equal(one.get_classifier().weight, again.get_classifier().weight)
        assert not torch.equal(one.get_classifier().weight, other.get_classifier().weight)
        assert not one.get_classifier().bias.any()


def test_a_whole_network_has_its_position_grid_resampled(teacher: str) -> None:
    teacher_info = read_teacher_info(teacher)
    weights, student_spec = open_teacher(teacher_info).model.state_dict(), read_student_spec(teacher_info, "same")
    student = build_pretrained(student_spec, weights, image_size=42, num_classes=3).student
    grid = weights["pos_embed"][:, 1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, (6, 6), mode="bicubic", antialias=False).permute(0, 2, 3, 1).reshape(1, 36, 32)
    torch.testing.assert_close(student.pos_embed[:, 1:], expected)


def test_weights_for_other_images_are_refused(tmp_path: Path) -> None:
    teacher_info = read_teacher_info(save_teacher(tmp_path / "mixer", "test_resnet"))
    weights = open_teacher(teacher_info).model.state_dict()
    del weights["layer1.0.bn1.running_var"]
    with pytest.raises(TwinbudError, match=r"^test_resnet: .*for images of 32 pixels \(layer1\.0\.bn1\.running_var\)"):
        build_pretrained(read_student_spec(teacher_info, "same"), weights, image_size=32, num_classes=3)
