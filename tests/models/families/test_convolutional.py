"""Selection from VGG, ResNet and EfficientNet: which weights half a teacher, or a shallower network, inherits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from helpers.builders import random_model, save_teacher
from helpers.convolutional import convolutional, save_narrow_teacher
from twinbud.core.errors import TwinbudError
from twinbud.models.families.base import TimmModel
from twinbud.models.families.registry import family_of
from twinbud.models.invariance import randomize
from twinbud.models.model_folder import open_model_folder, save_model_folder
from twinbud.models.outline import outline
from twinbud.models.selection import extract_weights, plan_selection
from twinbud.models.selection_io import load_selection, save_selection, select
from twinbud.models.student_pair import build_baseline, build_student_pair
from twinbud.models.student_spec import read_student_spec
from twinbud.models.teacher import TeacherInfo, open_teacher, read_teacher_info

NARROW = ("vgg11", "vgg11_bn", "resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_100")
"""Families of which timm cannot build half a teacher."""
BUILT_BY_TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "bottleneck": ("resnet26", {"channels": [8, 8, 12, 16]}),
    "deep stem": ("resnet18d", {"channels": [16, 8, 12, 16], "stem_width": 8}),
    "grouped": ("resnext50_32x4d", {"channels": [32, 32, 32, 32]}),
}


def half_of(teacher: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The teacher's tensors, and those of student and auxiliary."""
    info = read_teacher_info(teacher)
    selection = select(info)
    assert selection.auxiliary_weights is not None
    return open_teacher(info).model.state_dict(), selection.student_weights, selection.auxiliary_weights


def check_strides(teacher: str) -> None:
    """Student and auxiliary have every second index of each halved dimension, from 0 and from 1."""
    whole, student, auxiliary = half_of(teacher)
    for name, tensor in student.items():
        halved = [size * 2 == full for size, full in zip(tensor.shape, whole[name].shape, strict=True)]
        for offset, state in ((0, student), (1, auxiliary)):
            strided = whole[name][tuple(slice(offset if half else None, None, 2 if half else None) for half in halved)]
            assert torch.equal(state[name], strided), name
    assert any(not torch.equal(auxiliary[name], tensor) for name, tensor in student.items())


@pytest.mark.parametrize("architecture", NARROW)
def test_uniform_halves_a_narrow_teacher_by_strides(architecture: str, tmp_path: Path) -> None:
    check_strides(save_narrow_teacher(tmp_path / "teacher", architecture))


@pytest.mark.parametrize("name", BUILT_BY_TIMM)
def test_uniform_halves_a_teacher_that_timm_builds_by_strides(name: str, tmp_path: Path) -> None:
    architecture, arguments = BUILT_BY_TIMM[name]
    check_strides(save_teacher(tmp_path / "teacher", architecture, **arguments))


def test_a_shallower_vgg_inherits_the_first_convolutions_of_each_stage() -> None:
    """Their numbers differ: convolution 0 of stage 4 is features.24 in VGG-16 and features.28 in VGG-19."""
    teacher, student = (outline(name, "test", num_classes=2) for name in ("vgg19", "vgg16"))
    family = family_of(teacher)
    names = family.teacher_names(teacher, student)
    assert names["features.24.weight"] == "features.28.weight"
    assert names["features.14.bias"] == "features.14.bias"
    plan = plan_selection(teacher, student, family, with_auxiliary=False)
    statuses = {name: str(status) for name, status in plan.teacher_tensors.items()}
    assert statuses["features.28.weight"] == "selected"
    dropped = [name for name, status in statuses.items() if status.startswith("dropped: convolution")]
    assert dropped == [f"features.{place}.{kind}" for place in (16, 25, 34) for kind in ("weight", "bias")]
    assert statuses["features.25.bias"] == "dropped: convolution 3.3 is beyond the student's depth"


def test_the_weights_of_a_shallower_vgg_are_those_at_the_same_place() -> None:
    """On a chain of one stage more, since a real VGG-19 is large; batch norms follow their convolutions."""
    teacher, student = (small_vgg(name) for name in ("vgg13_bn", "vgg11_bn"))
    family = family_of(teacher)
    plan = plan_selection(teacher, student, family, with_auxiliary=False)
    state, weights = teacher.state_dict(), extract_weights(plan, teacher, student, family, "student")
    # vgg13_bn: stage 1 begins at features.7; vgg11_bn: at features.4, since its stage 0 has one convolution
    assert torch.equal(weights["features.4.weight"], state["features.7.weight"])
    assert torch.equal(weights["features.5.running_var"], state["features.8.running_var"])
    assert plan.widths["conv/4.1"].student_size == plan.widths["conv/4.1"].teacher_size


def small_vgg(name: str) -> TimmModel:
    """A randomized VGG in which all convolutions of all depths have four channels."""
    from twinbud.models.narrowing import build_network, narrowed_shapes
    from twinbud.models.widths import width_sizes

    whole = outline(name, "test", num_classes=2)
    specs, state = family_of(whole).specs(whole), whole.state_dict()
    shapes = narrowed_shapes(specs, state, dict.fromkeys(width_sizes(specs, state), 4))
    return randomize(build_network(name, "test", shapes, num_classes=2)).float()


def test_vgg_19_and_16_have_equal_widths_so_that_an_auxiliary_is_refused() -> None:
    teacher, student = (outline(name, "test", num_classes=2) for name in ("vgg19", "vgg16"))
    with pytest.raises(TwinbudError, match=r"all widths are equal \(conv/0.0 64 = 64, .*--method selection"):
        plan_selection(teacher, student, family_of(teacher))


def test_a_deeper_vgg_cannot_be_selected() -> None:
    teacher, student = (outline(name, "test", num_classes=2) for name in ("vgg16", "vgg19"))
    with pytest.raises(TwinbudError, match=r"'features.16.weight' .* in the teacher it is missing"):
        plan_selection(teacher, student, family_of(teacher))


@pytest.mark.parametrize(
    ("architecture", "kept"),
    [
        ("vgg16", []),
        ("resnet18", []),
        ("resnet34d", []),
        ("resnet50", ["stem"]),
        ("seresnet50", ["stem"]),
        ("wide_resnet50_2", ["stem"]),
        ("tf_efficientnet_lite0", []),
        ("mobilenetv3_large_100", []),
        ("efficientnetv2_s", []),
    ],
)
def test_half_cuts_every_width_but_a_stem_of_its_own(architecture: str, kept: list[str]) -> None:
    info = TeacherInfo(name=architecture, architecture=architecture, mean=(0.5,) * 3, std=(0.5,) * 3, weights=dict)
    student_spec = read_student_spec(info, "half")
    plan = plan_selection(info.outline(num_classes=2), student_spec.template, student_spec.family)
    for name, width in plan.widths.items():
        assert name in kept or abs(width.student_size - width.teacher_size / 2) <= 0.5, name
        assert width.overlap == (width.teacher_size if name in kept else 0), name
    assert (student_spec.shapes is None) == (architecture in ("resnet34d", "resnet50", "seresnet50", "wide_resnet50_2"))


def test_an_odd_width_is_halved_downwards() -> None:
    info = TeacherInfo(
        name="odd", architecture="resnet26", model_args={"channels": [9, 9, 9, 9]}, mean=(), std=(), weights=dict
    )
    plan = plan_selection(
        info.outline(num_classes=1), read_student_spec(info, "half").template, family_of(info.outline(num_classes=1))
    )
    assert plan.widths["inner/layer2.1.conv1"].student_size == 4
    assert plan.widths["stage/2"].student_size == 16


def test_a_resnet_that_blurs_is_refused_where_timm_cannot_halve_it() -> None:
    info = TeacherInfo(name="blur", architecture="resnetblur18", mean=(), std=(), weights=dict)
    with pytest.raises(TwinbudError, match=r"^--student: a ResNet that blurs"):
        read_student_spec(info, "half")
    assert read_student_spec(TeacherInfo(name="b", architecture="resnetblur50", mean=(), std=(), weights=dict), "half")


@pytest.mark.parametrize(
    "architecture",
    ["ecaresnet50t", "skresnet18", "resnest14d", "mixnet_s", "efficientnet_cc_b0_4e", "efficientnet_b0_gn"],
)
def test_networks_with_layers_of_other_kinds_are_not_taken_for_described_ones(architecture: str) -> None:
    assert family_of(outline(architecture, "test", num_classes=2)).name == "network without selection"


@pytest.mark.parametrize("architecture", NARROW)
def test_a_narrow_network_is_opened_again_with_equal_logits(architecture: str, tmp_path: Path) -> None:
    student_spec = read_student_spec(read_teacher_info(save_narrow_teacher(tmp_path / "teacher", architecture)), "half")
    model = randomize(student_spec.build(image_size=32, num_classes=3)).float()
    (tmp_path / "model").mkdir()
    save_model_folder(tmp_path / "model", model, student_spec, image_size=32, classes=("a", "b", "c"))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    opened = open_model_folder(tmp_path / "model").model
    assert repr(opened) == repr(model)
    assert torch.equal(opened(images), model(images))


@pytest.mark.parametrize("pretrained", [True, False])
def test_timm_alone_fails_on_a_network_that_it_cannot_build(pretrained: bool, tmp_path: Path) -> None:
    """Without an error, it would return a wider network with random weights."""
    teacher = save_narrow_teacher(tmp_path / "teacher", "vgg11")
    student_spec = read_student_spec(read_teacher_info(teacher), "half")
    (tmp_path / "model").mkdir()
    model = student_spec.build(image_size=32, num_classes=3)
    save_model_folder(tmp_path / "model", model, student_spec, image_size=32, classes=("a", "b", "c"))
    with pytest.raises(RuntimeError, match=r"Unknown model \(vgg11-narrowed-by-twinbud\)"):
        timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=pretrained)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["open_with"] == ["import twinbud", 'model = twinbud.open_model("PATH")  # PATH: this folder']
    assert "timm alone cannot open this folder" in config["note"]


def test_weights_that_do_not_fit_the_narrow_network_are_refused(tmp_path: Path) -> None:
    student_spec = read_student_spec(read_teacher_info(save_narrow_teacher(tmp_path / "teacher", "vgg11")), "half")
    folder = tmp_path / "model"
    folder.mkdir()
    model = student_spec.build(image_size=32, num_classes=3)
    save_model_folder(folder, model, student_spec, image_size=32, classes=("a", "b", "c"))
    config = json.loads((folder / "config.json").read_text())
    for changes, problem in (
        ({"architecture": "vgg13-narrowed-by-twinbud"}, "cannot be narrowed .* has no such tensor"),
        ({"architecture": "resnet18-narrowed-by-twinbud"}, "cannot be narrowed .* has no such tensor"),
        ({"architecture": "vgg11"}, "the weights do not fit config.json"),
        ({"label_names": ["a", "b"]}, r"head.fc.bias: \(3,\), config.json implies \(2,\)"),
        ({"architecture": "vgg99-narrowed-by-twinbud"}, "timm has no architecture 'vgg99'"),
    ):
        (folder / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(TwinbudError, match=problem):
            open_model_folder(folder)


@pytest.mark.parametrize("architecture", ["vgg11_bn", "tf_efficientnet_lite0"])
def test_a_selection_is_trained_from_its_folder_without_the_teacher(architecture: str, tmp_path: Path) -> None:
    selection = select(read_teacher_info(save_narrow_teacher(tmp_path / "teacher", architecture)))
    (tmp_path / "selected").mkdir()
    save_selection(selection, tmp_path / "selected")
    loaded = load_selection(tmp_path / "selected")
    assert loaded.student_spec.shapes == selection.student_spec.shapes
    pairs = [build_student_pair(each, image_size=32, num_classes=3) for each in (selection, loaded)]
    for name, tensor in pairs[0].student.state_dict().items():
        assert torch.equal(tensor, pairs[1].student.state_dict()[name]), name
    content = json.loads((tmp_path / "selected" / "plan.json").read_text())
    content["student"]["shapes"]["classifier.weight" if "efficient" in architecture else "head.fc.weight"] = [1, "x"]
    (tmp_path / "selected" / "plan.json").write_text(json.dumps(content))
    with pytest.raises(TwinbudError, match="without the shapes of tensors"):
        load_selection(tmp_path / "selected")


def test_a_student_of_a_narrow_teacher_folder_is_half_of_that_teacher(tmp_path: Path) -> None:
    """A delivered student becomes a teacher, whole or halved again."""
    info = read_teacher_info(save_narrow_teacher(tmp_path / "teacher", "resnet18", 8))
    tensor = open_teacher(info).model.state_dict()["layer2.0.conv1.weight"]
    whole, half = (read_student_spec(info, name).template.state_dict() for name in ("same", "half"))
    assert whole["layer2.0.conv1.weight"].shape == tensor.shape
    assert half["layer2.0.conv1.weight"].shape == (tensor.shape[0] // 2, tensor.shape[1] // 2, 3, 3)


@pytest.mark.parametrize("method", ["timm", "xavier", "kaiming"])
def test_a_random_student_is_drawn_at_its_own_width(method: Any, tmp_path: Path) -> None:
    info = read_teacher_info(save_narrow_teacher(tmp_path / "teacher", "vgg11_bn", 16))
    student_spec = read_student_spec(info, "half")
    state = build_baseline(student_spec, method, image_size=32, num_classes=3).student.state_dict()
    weight = state["pre_logits.fc1.weight"]
    fan_in, fan_out = weight[0].numel(), weight[:, 0].numel()
    expected = {"timm": 2 / fan_out, "xavier": 2 / (fan_in + fan_out), "kaiming": 2 / fan_in}[method] ** 0.5
    assert float(weight.std()) == pytest.approx(expected, rel=0.1)
    assert torch.equal(state["features.1.running_var"], torch.ones_like(state["features.1.running_var"]))


def test_counters_of_batches_are_copied_and_run_along_no_width(tmp_path: Path) -> None:
    teacher = save_narrow_teacher(tmp_path / "teacher", "vgg11_bn")
    path = tmp_path / "teacher" / "model.safetensors"
    from safetensors.torch import save_file

    save_file({**load_file(path), "features.1.num_batches_tracked": torch.tensor(7)}, path)
    _, student, auxiliary = half_of(teacher)
    assert student["features.1.num_batches_tracked"] == auxiliary["features.1.num_batches_tracked"] == 7
    model = convolutional("vgg-batch-norm")[0]
    assert family_of(model).specs(model)["features.1.num_batches_tracked"].axes == ()


def test_an_image_that_is_too_small_is_refused_by_its_size(tmp_path: Path) -> None:
    student_spec = read_student_spec(read_teacher_info(save_narrow_teacher(tmp_path / "teacher", "vgg11")), "half")
    with pytest.raises(TwinbudError, match=r"^--image-size: vgg11 cannot process images of 16 pixels"):
        student_spec.timm_arguments(16)
    assert random_model("test_resnet", num_classes=2) is not None
