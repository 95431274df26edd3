"""``--student quarter``: a quarter of every width of the teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from helpers.builders import VIT, save_teacher
from twinbud.core.errors import TwinbudError
from twinbud.models.families.registry import family_of
from twinbud.models.selection_io import select
from twinbud.models.student_spec import read_student_spec
from twinbud.models.teacher import read_teacher_info
from twinbud.models.widths import width_sizes


@pytest.mark.parametrize(
    "architecture",
    [
        "vit_base_patch14_dinov2.lvd142m",
        "vit_base_patch16_dinov3.lvd1689m",
        "swin_base_patch4_window7_224.ms_in22k",
        "convnext_tiny.fb_in22k",
        "mixer_b16_224.goog_in21k",
        "resmlp_24_224.fb_in1k",
        "vgg16_bn.tv_in1k",
        "resnet50.a1_in1k",
        "resnet18.a1_in1k",
        "tf_efficientnet_lite0.in1k",
        "mobilenetv3_large_100.ra_in1k",
    ],
)
def test_every_width_is_a_quarter(architecture: str) -> None:
    teacher_info = read_teacher_info(architecture)
    teacher = teacher_info.outline(num_classes=3)
    student = read_student_spec(teacher_info, "quarter").outline(num_classes=3)
    family = family_of(teacher)
    names = family.teacher_names(teacher, student)
    whole = width_sizes(family.specs(teacher), teacher.state_dict())
    found = width_sizes(family.specs(student), student.state_dict())
    assert set(names) == set(student.state_dict())
    wrong = {width: (size, whole[width]) for width, size in found.items() if size != max(1, whole[width] // 4)}
    assert all(width.startswith("stem") for width in wrong), f"not a quarter: {wrong}"


@pytest.mark.parametrize(("attention", "shape"), [("heads", (1, 8)), ("within", (4, 2))])
def test_heads_are_fewer_or_narrower(attention: str, shape: tuple[int, int], tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher", "vit_tiny_patch16_224", **VIT)
    selection = select(read_teacher_info(teacher), student="quarter", attention=attention)  # pyright: ignore[reportArgumentType]
    student = selection.student_spec.build(image_size=28, num_classes=3)
    assert student.embed_dim == VIT["embed_dim"] // 4
    assert (student.blocks[0].attn.num_heads, student.blocks[0].attn.head_dim) == shape
    arguments = {**selection.student_spec.model_args, "img_size": 28}
    plain = timm.create_model(selection.student_spec.architecture, num_classes=3, **arguments)
    assert plain(torch.zeros(2, 3, 28, 28)).shape == (2, 3)


def test_heads_that_cannot_be_quartered_are_told_how() -> None:
    expected = (
        "6 attention heads cannot be divided by 4. Use --attention within, which keeps all heads, or use --student half"
    )
    with pytest.raises(TwinbudError, match=expected):
        read_student_spec(read_teacher_info("vit_small_patch14_dinov2.lvd142m"), "quarter")
    spec = read_student_spec(read_teacher_info("vit_small_patch14_dinov2.lvd142m"), "quarter", attention="within")
    assert (spec.model_args["embed_dim"], spec.template.blocks[0].attn.head_dim) == (96, 16)


def test_a_resnet_that_blurs_and_cannot_be_quartered_can_be_halved() -> None:
    info = read_teacher_info("resnetblur50.bt_in1k")
    with pytest.raises(TwinbudError, match=r"--student: a ResNet that blurs .* by 4: .*, or use --student half"):
        read_student_spec(info, "quarter")
    assert read_student_spec(info, "half")


def test_rotary_heads_are_not_advised_to_get_narrower() -> None:
    with pytest.raises(TwinbudError, match=r"divided by 4\. Use --student half, or choose a teacher whose"):
        read_student_spec(read_teacher_info("vit_small_patch16_dinov3.lvd1689m"), "quarter")
