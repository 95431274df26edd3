"""What is special about Swin: windows, tables of relative positions, patch merging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table

from helpers.builders import SWIN, random_model, save_teacher
from twinbud.config.schema import Attention
from twinbud.core.errors import TwinbudError
from twinbud.models.families.registry import family_of
from twinbud.models.outline import outline
from twinbud.models.selection import extract_weights, plan_selection
from twinbud.models.selection_io import select
from twinbud.models.student_pair import build_student_pair
from twinbud.models.student_spec import read_student_spec
from twinbud.models.teacher import open_teacher_at, read_teacher_info

TINY = "swin_tiny_patch4_window7_224"
TABLE = "layers.1.blocks.1.attn.relative_position_bias_table"


def swin(seed: int = 0, **changes: Any) -> Any:
    return random_model(TINY, seed, **{**SWIN, **changes})


def shapes(model: Any) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def test_half_of_swin_large_is_swin_tiny_and_a_selection_of_it() -> None:
    info = read_teacher_info("swin_large_patch4_window7_224.ms_in22k_ft_in1k")
    half, by_name = (read_student_spec(info, student) for student in ("half", TINY))
    assert shapes(half.template) == shapes(by_name.template)
    assert half.family.shape(half.template).depths == (2, 2, 6, 2)
    teacher = outline(info.architecture, info.name)
    plan = plan_selection(teacher, by_name.template, by_name.family)
    assert [plan.widths[f"stage/{stage}"].student_size for stage in range(4)] == [96, 192, 384, 768]
    assert all(width.teacher_size == 2 * width.student_size and not width.overlap for width in plan.widths.values())
    assert str(plan.teacher_tensors["layers.2.blocks.6.norm1.bias"]) == (
        "dropped: layers.2.blocks.6 is beyond the student's depth"
    )


def test_half_a_teacher_is_never_deeper_than_the_teacher() -> None:
    teacher = outline("swin_large_patch4_window7_224", "teacher", depths=[2, 2, 3, 1])
    assert family_of(teacher).narrow_arguments("swin_large_patch4_window7_224", teacher, 2)["depths"] == [2, 2, 3, 1]


def test_swin_small_and_tiny_have_equal_widths_which_leaves_nothing_for_an_auxiliary() -> None:
    info = read_teacher_info("swin_small_patch4_window7_224")
    spec, teacher = read_student_spec(info, TINY), outline(info.architecture, info.name)
    with pytest.raises(TwinbudError, match=r"all widths are equal \(stage/0 96 = 96, .* --method selection"):
        plan_selection(teacher, spec.template, spec.family)
    alone = plan_selection(teacher, spec.template, spec.family, with_auxiliary=False)
    assert alone.student_tensors[TABLE].kind == "selected"


@pytest.mark.parametrize("attention", ["interleaved", "heads"])
def test_a_table_of_relative_positions_takes_teacher_heads_whole(attention: Attention) -> None:
    """Student head h takes the table of head 2h, and the auxiliary's that of head 2h + 1."""
    teacher, student = swin(), swin(1, embed_dim=4, num_heads=[1, 2, 4])
    family = family_of(teacher)
    plan = plan_selection(teacher, student, family, attention=attention)
    table = teacher.layers[1].blocks[1].attn.relative_position_bias_table
    for offset, role in enumerate(("student", "auxiliary")):
        found = extract_weights(plan, teacher, student, family, role)[TABLE]
        assert torch.equal(found, table[:, offset::2])


def test_a_patch_merging_reads_four_copies_of_the_stage_before() -> None:
    teacher, student = swin(), swin(1, embed_dim=4, num_heads=[1, 2, 4])
    with torch.no_grad():
        teacher.layers[1].downsample.norm.bias.copy_(torch.arange(32))
    family = family_of(teacher)
    plan = plan_selection(teacher, student, family, rule="consecutive")
    found = extract_weights(plan, teacher, student, family, "auxiliary")["layers.1.downsample.norm.bias"]
    assert found.tolist() == [8 * copy + channel for copy in range(4) for channel in range(4, 8)]


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, about how timm indexes
def test_a_table_is_resampled_where_the_student_has_another_window(tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher", TINY, **{**SWIN, "img_size": 64, "window_size": 4})
    info = read_teacher_info(teacher)
    selection = select(info)
    student = selection.student_spec.build(image_size=64, num_classes=2)
    assert student.layers[1].blocks[1].attn.window_size == (4, 4)
    at_32 = build_student_pair(selection, image_size=32, num_classes=2).student.state_dict()
    whole = open_teacher_at(info, selection.student_spec.family, 64).state_dict()
    for stage, window in ((0, 4), (1, 4), (2, 2)):  # the last map has 2 × 2 positions at 32 pixels
        name = f"layers.{stage}.blocks.0.attn.relative_position_bias_table"
        length = (2 * window - 1) ** 2
        expected = resize_rel_pos_bias_table(whole[name], (window, window), (length, whole[name].shape[1]))
        torch.testing.assert_close(at_32[name], expected[:, ::2])
    narrow = swin(1, embed_dim=4, num_heads=[1, 2, 4], window_size=2)
    wide = swin(img_size=64, window_size=4)
    plan = plan_selection(wide, narrow, family_of(wide))
    assert str(plan.student_tensors[TABLE]) == "resampled: to the student's window when training starts"
    assert plan.student_tensors["layers.1.blocks.1.norm1.bias"].kind == "selected"


def test_a_smaller_window_takes_the_middle_of_the_table() -> None:
    """Pairs of positions keep their bias; timm's interpolation is not exact."""
    wide, narrow = swin(img_size=64, window_size=4), swin(img_size=64, window_size=2)
    table = wide.state_dict()[TABLE]
    middle = table.view(7, 7, -1)[2:5, 2:5].reshape(9, -1)
    fitted = family_of(wide).fit_positions(wide.state_dict(), narrow)[TABLE]
    torch.testing.assert_close(fitted, middle, rtol=0, atol=0.05)
    assert float((fitted - middle).abs().max()) < 0.1 * float(table.std())


def test_a_window_of_one_position_grows_into_a_constant_table() -> None:
    small, large = swin(img_size=16), swin(img_size=32)
    name = "layers.2.blocks.0.attn.relative_position_bias_table"
    fitted = family_of(small).fit_positions(small.state_dict(), large)
    assert torch.equal(fitted[name], small.state_dict()[name].expand(9, -1))
    large.load_state_dict(fitted)


def test_a_window_that_is_not_square_is_not_resampled() -> None:
    wide = swin(window_size=[2, 4])
    assert family_of(wide).fit_positions(wide.state_dict(), wide).keys() == wide.state_dict().keys()
    with pytest.raises(TwinbudError, match=r"relative_position_bias_table' of 21 relative positions is not resampled"):
        family_of(wide).fit_positions(wide.state_dict(), swin(window_size=3))


def test_a_teacher_at_another_image_size_has_the_windows_of_its_students(tmp_path: Path) -> None:
    """timm's own ``set_input_size`` would scale the windows with the image."""
    info = read_teacher_info(save_teacher(tmp_path / "teacher", TINY, **SWIN))
    selection = select(info)
    for image_size in (16, 32, 64):
        teacher = open_teacher_at(info, selection.student_spec.family, image_size)
        student = build_student_pair(selection, image_size=image_size, num_classes=2).student
        for name, module in selection.student_spec.family.blocks(teacher).items():
            if "blocks" in name:
                assert module.window_size == student.get_submodule(name).window_size
                assert module.shift_size == student.get_submodule(name).shift_size
        assert teacher(torch.randn(1, 3, image_size, image_size)).shape == (1, 1000)


@pytest.mark.parametrize(("image_size", "fix"), [(30, "28 or 32"), (8, "16"), (18, "16 or 20")])
def test_an_image_size_that_a_swin_cannot_take_is_refused_with_one_that_fits(image_size: int, fix: str) -> None:
    model = swin()
    with pytest.raises(TwinbudError, match=rf"a multiple of its patch size 4; .* Use --image-size {fix}\.$"):
        family_of(model).image_arguments(model, image_size, "--image-size")
    assert family_of(model).image_arguments(model, 16, "--image-size") == {"img_size": 16}


def test_an_odd_number_of_heads_cannot_be_halved() -> None:
    with pytest.raises(TwinbudError, match=r"the attention heads cannot be divided by 2 \(3 in stage 0\)"):
        read_student_spec(read_teacher_info(TINY), "half")


def test_another_head_size_is_refused() -> None:
    teacher = swin()
    with pytest.raises(TwinbudError, match="heads have 2 channels in stage 0, the teacher's 4"):
        plan_selection(teacher, swin(1, embed_dim=4), family_of(teacher))


@pytest.mark.parametrize("changes", [{}, {"window_size": 3, "always_partition": True}], ids=["shifted", "padded"])
def test_what_attention_reads_is_put_back_in_the_order_of_the_stream(changes: dict[str, Any]) -> None:
    """The queries of all positions, computed window by window and put back, are those computed from the stream."""
    model = swin(**changes)
    family = family_of(model)
    stream = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    for block in model.layers[0].blocks:
        found: list[torch.Tensor] = []
        handle = block.attn.qkv.register_forward_hook(lambda _, inputs, output, found=found: found.append(output))
        attention, _ = family.require_recovery().branches(block)
        with torch.no_grad():
            attention.forward(stream)
            handle.remove()
            expected = block.attn.qkv(block.norm1(stream)).flatten(1, 2)
        order = attention.linears[0].to_stream_order
        assert order is not None
        torch.testing.assert_close(order(found[0]), expected)
    assert any(model.layers[0].blocks[1].shift_size)
