"""Selection from a network that nobody described."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.builders import save_teacher
from twinbud.config.schema import ModelConfig
from twinbud.core.errors import TwinbudError
from twinbud.models.discovery.family import discover
from twinbud.models.selection_io import Selection, load_selection, select, select_to_folder
from twinbud.models.student_pair import build_student_pair
from twinbud.models.student_spec import read_student_spec
from twinbud.models.teacher import open_teacher, read_teacher_info

DENSENET = {"growth_rate": 4, "block_config": (2, 2, 2, 2), "num_classes": 0}
IMAGE_SIZE = 32


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small DenseNet; to be read only."""
    return save_teacher(tmp_path_factory.mktemp("teacher") / "densenet", "densenet121", **DENSENET)


@pytest.fixture(scope="module")
def selection(teacher: str) -> Selection:
    """What is selected from ``teacher``; to be read only."""
    return select(read_teacher_info(teacher), family="auto")


def test_student_and_auxiliary_take_disjoint_halves_of_every_width(selection: Selection) -> None:
    plan = selection.plan
    assert plan.widths
    for name, width in plan.widths.items():
        assert width.student_size == width.teacher_size // 2, name
        assert width.overlap == 0, name


def test_features_that_follow_one_another_are_selected_each_by_its_own_indices(
    teacher: str, selection: Selection
) -> None:
    """The first transition reads the stem's 8 channels and the 4 of each of two dense layers."""
    student, auxiliary = selection.student_weights, selection.auxiliary_weights
    whole = open_teacher(read_teacher_info(teacher)).model.state_dict()["features.transition1.norm.weight"]
    stem, first, second = whole.split([8, 4, 4])
    name = "features.transition1.norm.weight"
    assert torch.equal(student[name], torch.cat([stem[::2], first[::2], second[::2]]))
    assert auxiliary is not None
    assert torch.equal(auxiliary[name], torch.cat([stem[1::2], first[1::2], second[1::2]]))


def test_a_selection_is_the_same_after_saving(teacher: str, tmp_path: Path) -> None:
    made = select_to_folder(ModelConfig(teacher=teacher, family="auto"), tmp_path / "selected")
    read = load_selection(tmp_path / "selected")
    assert read.plan == made.plan
    assert read.settings == made.settings
    for name, tensor in made.student_weights.items():
        assert torch.equal(tensor, read.student_weights[name]), name
    pairs = [build_student_pair(each, image_size=IMAGE_SIZE, num_classes=3) for each in (made, read)]
    images_BCSS = torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    outputs = [pair.student.eval()(images_BCSS) for pair in pairs]
    assert outputs[0].shape == (2, 3)
    assert torch.equal(*outputs)


def test_every_rule_selects_every_tensor(teacher: str) -> None:
    for rule in ("consecutive", "random", "random-inconsistent"):
        made = select(read_teacher_info(teacher), family="auto", rule=rule)
        shapes = {name: tensor.shape for name, tensor in made.student_spec.template.state_dict().items()}
        assert set(made.student_weights) == {name for name in shapes if not name.startswith("classifier.")}
        for name, tensor in made.student_weights.items():
            assert tensor.shape == shapes[name], (rule, name)


def test_a_student_of_another_architecture_is_refused(teacher: str) -> None:
    with pytest.raises(TwinbudError, match=r"a RegNet with other layers cannot be selected.* Use --student half"):
        read_student_spec(read_teacher_info(teacher), "regnety_002", "auto")


def test_a_network_with_one_tensor_under_two_names_is_refused_by_both() -> None:
    with pytest.raises(TwinbudError, match=r"'cpe1.proj.weight' and '\S+' are one tensor"):
        discover("small_coat", "small_coat", {})


def test_a_teacher_of_another_image_size_is_selected_at_its_own(tmp_path: Path) -> None:
    arguments = {"img_size": 28, "patch_size": 7, "embed_dim": 32, "depth": 1, "num_heads": 4}
    info = read_teacher_info(save_teacher(tmp_path / "vit", "vit_tiny_patch16_224", num_classes=0, **arguments))
    spec = read_student_spec(info, "half", "auto")
    assert spec.build(image_size=28, num_classes=3)(torch.rand(2, 3, 28, 28)).shape == (2, 3)
    with pytest.raises(TwinbudError, match=r"cannot process images of 224 pixels.* Use --image-size 28, "):
        spec.timm_arguments(224)


def test_found_widths_of_a_vit_select_what_the_described_ones_do(tmp_path: Path) -> None:
    arguments = {"img_size": 28, "patch_size": 7, "embed_dim": 32, "depth": 2, "num_heads": 4}
    teacher = save_teacher(tmp_path / "vit", "vit_tiny_patch16_224", **arguments)
    described, found = (select(read_teacher_info(teacher), family=family) for family in ("described", "auto"))
    assert set(found.student_weights) == set(described.student_weights)
    for name, tensor in described.student_weights.items():
        assert torch.equal(found.student_weights[name], tensor), name
