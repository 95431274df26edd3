"""What is special about MLP-Mixers: positions are kept whole, and timm's names fix the width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from helpers.builders import MIXER, save_teacher
from twinbud.core.errors import TwinbudError
from twinbud.models.families.mixer import HALVES
from twinbud.models.model_folder import save_model_folder
from twinbud.models.outline import outline
from twinbud.models.selection import plan_selection
from twinbud.models.selection_io import load_selection, save_selection, select
from twinbud.models.student_pair import build_student_pair
from twinbud.models.student_spec import read_student_spec
from twinbud.models.teacher import open_teacher_at, read_teacher_info
from twinbud.training.optimizer import lr_scales


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    return save_teacher(tmp_path / "mixer", "small_mixer")


@pytest.mark.parametrize("architecture", HALVES)
def test_half_of_a_mixer_is_timms_network_of_half_the_width_and_a_selection_of_it(architecture: str) -> None:
    info = read_teacher_info(architecture)
    spec = read_student_spec(info, "half")
    assert spec.architecture == HALVES[architecture]
    plan = plan_selection(outline(architecture, "teacher"), spec.template, spec.family)
    assert all(width.teacher_size == 2 * width.student_size and not width.overlap for width in plan.widths.values())
    assert plan.widths.keys() >= {"residual", "mlp/blocks.7"}


@pytest.mark.parametrize("architecture", ["mixer_b16_224", "resmlp_12_224", "gmixer_12_224", "gmlp_ti16_224"])
def test_half_of_a_mixer_that_timm_has_in_one_width_has_narrower_tensors(architecture: str) -> None:
    info = read_teacher_info(architecture)
    spec = read_student_spec(info, "half")
    assert spec.architecture == architecture
    assert spec.shapes is not None
    plan = plan_selection(outline(architecture, "teacher"), spec.template, spec.family)
    assert all(width.teacher_size == 2 * width.student_size and not width.overlap for width in plan.widths.values())


def test_a_student_may_be_narrower_by_less_than_half() -> None:
    info = read_teacher_info("mixer_b16_224")
    spec = read_student_spec(info, "mixer_s16_224")
    plan = plan_selection(outline(info.architecture, "teacher"), spec.template, spec.family)
    width = plan.widths["residual"]
    assert (width.teacher_size, width.student_size, width.overlap) == (768, 512, 256)


def test_its_weights_are_selected_and_its_students_run(teacher: str) -> None:
    selection = select(read_teacher_info(teacher))
    pair = build_student_pair(selection, image_size=32, num_classes=3)
    assert pair.auxiliary is not None
    assert pair.student(torch.randn(1, 3, 32, 32)).shape == (1, 3)
    assert selection.plan.widths["residual"].student_indices == tuple(range(0, 16, 2))
    assert not torch.equal(pair.student.norm.weight, pair.auxiliary.norm.weight)


def test_layer_decay_counts_its_blocks(teacher: str) -> None:
    pair = build_student_pair(select(read_teacher_info(teacher)), image_size=32, num_classes=3)
    scales = lr_scales(pair.student, 0.5)
    assert scales["head.weight"] == 1.0
    assert scales["blocks.2.norm1.weight"] == 0.5
    assert scales["stem.proj.bias"] == 0.5**4


@pytest.mark.parametrize("kind", ["small_mixer", "small_resmlp", "small_gmlp"])
def test_students_take_the_teachers_image_size_and_no_other(kind: str, tmp_path: Path) -> None:
    info = read_teacher_info(save_teacher(tmp_path / "teacher", kind, img_size=16))
    selection = select(info)
    assert selection.student_spec.model_args["img_size"] == 16
    said = rf"^--image-size: {kind} takes images of 16 × 16 pixels alone.*; 32 is given\. Use --image-size 16\.$"
    with pytest.raises(TwinbudError, match=said):
        build_student_pair(selection, image_size=32, num_classes=2)
    with pytest.raises(TwinbudError, match="takes images of 16 × 16 pixels alone"):
        open_teacher_at(info, selection.student_spec.family, 32)
    folder = tmp_path / "selected"
    folder.mkdir()
    save_selection(selection, folder)
    pair = build_student_pair(load_selection(folder), image_size=16, num_classes=2)
    assert pair.student(torch.randn(1, 3, 16, 16)).shape == (1, 2)


def test_a_student_with_other_positions_is_refused(tmp_path: Path) -> None:
    """A file of weights alone does not tell the image size, and timm's default is another one."""
    named = save_teacher(tmp_path / "teacher", "small_mixer", img_size=64, patch_size=16)
    spec = read_student_spec(read_teacher_info(named), "half")
    with pytest.raises(TwinbudError, match=r"images of 64 pixels in 16 positions, the teacher of 32 pixels in 4"):
        plan_selection(timm.create_model("small_mixer", patch_size=16), spec.template, spec.family)


def test_what_is_selected_from_a_network_of_timms_own_opens_with_plain_timm(tmp_path: Path) -> None:
    """The widths of gMLP-S and gMLP-Ti are timm's; only the images are small."""
    settings: dict[str, Any] = {"image_size": 16, "num_classes": 3}
    selection = select(read_teacher_info(save_teacher(tmp_path / "teacher", "gmlp_s16_224", img_size=16)))
    student = build_student_pair(selection, **settings).student.eval()
    folder = tmp_path / "model"
    folder.mkdir()
    save_model_folder(folder, student, selection.student_spec, image_size=16, classes=("a", "b", "c"))
    opened: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert type(opened.blocks[0]).__name__ == "SpatialGatingBlock"
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(opened(images), student(images))


def test_a_block_that_mixes_positions_alone_leaves_them_uncut(teacher: str) -> None:
    selection = select(read_teacher_info(teacher))
    num_positions = (MIXER["img_size"] // MIXER["patch_size"]) ** 2
    assert selection.student_weights["blocks.0.mlp_tokens.fc1.weight"].shape == (4, num_positions)
    assert selection.student_weights["blocks.0.mlp_tokens.fc2.bias"].shape == (num_positions,)
