"""Least squares for VGG and ResNet: convolutions are refitted to the teacher's, and batch norms follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.layers.create_conv2d import create_conv2d
from torch import nn

from helpers.builders import save_teacher
from helpers.command import trained
from helpers.convolutional import save_narrow_teacher
from helpers.recovering import batches, refit_batches
from helpers.runs import read_json
from twinbud.models.families.registry import family_of
from twinbud.models.outline import outline
from twinbud.models.selection_io import select
from twinbud.models.student_pair import build_student_pair
from twinbud.models.teacher import open_teacher_at, read_teacher_info
from twinbud.recovery import normal_equations
from twinbud.recovery.channel_map import ChannelMap
from twinbud.recovery.least_squares import refit_layers
from twinbud.recovery.normal_equations import NormalEquations, input_rows
from twinbud.recovery.refit import refitted_layers
from twinbud.recovery.teacher_provider import num_stream_elements

SIZE = 32
NARROW = ("vgg11", "vgg11_bn", "resnet18")
BOTTLENECKS: dict[str, dict[str, Any]] = {
    "resnet26": {"channels": [8, 8, 12, 16]},
    "resnet26d": {"channels": [8, 8, 12, 16]},
}
TEACHERS = (*NARROW, *BOTTLENECKS)


def save(folder: Path, architecture: str) -> str:
    """Save a teacher whose batch norms have statistics and weights of their own, near those of a trained network."""
    if architecture in NARROW:
        teacher = save_narrow_teacher(folder, architecture, 16)
    else:
        teacher = save_teacher(folder, architecture, **BOTTLENECKS[architecture])
    path, generator = folder / "model.safetensors", torch.Generator().manual_seed(1)
    state = load_file(path)
    for name, tensor in state.items():
        noise = torch.randn(tensor.shape, generator=generator)
        layer, _, kind = name.rpartition(".")
        if kind == "running_var":
            tensor.copy_(0.5 + noise.square())
        elif f"{layer}.running_var" in state and tensor.is_floating_point():
            tensor.copy_(0.2 * noise + (kind == "weight"))
        elif tensor.dim() == 4:
            tensor.copy_(noise * (2 / tensor[0].numel()) ** 0.5)
    save_file(state, path)
    return teacher


def beside(folder: Path, architecture: str, student: str = "half") -> ChannelMap:
    """A selected student and its teacher."""
    info = read_teacher_info(save(folder / architecture, architecture))
    selection = select(info, student, with_auxiliary=False)
    family = selection.student_spec.family
    return ChannelMap(
        student=build_student_pair(selection, image_size=SIZE, num_classes=2).student.eval(),
        teacher=open_teacher_at(info, family, SIZE),
        family=family,
        plan=selection.plan,
        pair_role="student",
    )


def distances(pair: ChannelMap, images: torch.Tensor) -> list[float]:
    """How far the map after each block is from the teacher's at the student's channels, as a share of its variance."""
    with torch.no_grad():
        *ours, _ = pair.student_streams(images)
        *theirs, _ = pair.teacher_streams(images)
    tokens, found = pair.recovery.tokens, list[float]()
    for block, one, other in zip(pair.blocks, ours, theirs, strict=True):
        target = pair.student_stream(block.name, tokens(other))
        found.append(float((tokens(one) - target).square().mean() / target.var()))
    return found


@pytest.mark.parametrize("architecture", TEACHERS)
def test_a_refitted_student_is_nearer_to_its_teacher_also_on_images_it_has_not_seen(
    architecture: str, tmp_path: Path
) -> None:
    pair, (unseen,) = beside(tmp_path, architecture), batches(SIZE, seed=1, count=1)
    before = distances(pair, unseen)
    fits = refit_layers(pair, refit_batches(SIZE))
    after = distances(pair, unseen)
    assert after[-1] < 0.7 * before[-1]
    assert sum(fit.after > fit.before for fit in fits) > 0.9 * len(fits)


@pytest.mark.parametrize("architecture", TEACHERS)
def test_a_student_that_is_all_of_its_teacher_stays_as_it_is(architecture: str, tmp_path: Path) -> None:
    """Its layers explain all of the teacher's, so that the largest ridge is chosen and nothing changes."""
    pair = beside(tmp_path, architecture, "same")
    weights = {name: tensor.clone() for name, tensor in pair.student.state_dict().items()}
    for fit in refit_layers(pair, refit_batches(SIZE)):
        assert fit.before == pytest.approx(1, abs=1e-5), fit.layer
    for name, tensor in pair.student.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=1e-3)
    assert max(distances(pair, *batches(SIZE, seed=1, count=1))) < 1e-6


@pytest.mark.parametrize("architecture", TEACHERS)
def test_the_branches_of_a_block_are_the_block(architecture: str, tmp_path: Path) -> None:
    pair = beside(tmp_path, architecture)
    with torch.no_grad():
        stream = pair.recovery.embed(pair.teacher, batches(SIZE)[0])
        for block in pair.family.blocks(pair.teacher).values():
            expected = block(stream)
            for branch in pair.recovery.branches(block):
                stream = branch.forward(stream)
            assert torch.equal(stream, expected)
        assert torch.equal(stream, pair.teacher.forward_features(batches(SIZE)[0]))


@pytest.mark.parametrize("architecture", TEACHERS)
def test_every_convolution_that_mixes_channels_is_refitted_once(architecture: str, tmp_path: Path) -> None:
    """But those of the stem, which read the images, and of VGG's classifier."""
    pair = beside(tmp_path, architecture)
    fits = [fit.layer for fit in refit_layers(pair, refit_batches(SIZE))]
    assert fits == refitted_layers(pair.family, pair.student)
    convolutions = [name for name, layer in pair.student.named_modules() if isinstance(layer, nn.Conv2d)]
    assert set(convolutions) - set(fits) == {
        name for name in convolutions if name.startswith(("conv1", "pre_logits")) or name == "features.0"
    }


def test_grouped_convolutions_keep_their_selected_weights(tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher", "resnext50_32x4d", channels=[32, 32, 32, 32])
    student_spec = select(read_teacher_info(teacher)).student_spec
    layers = refitted_layers(student_spec.family, student_spec.template)
    assert "layer1.0.conv1" in layers
    assert "layer1.0.conv2" not in layers


def test_the_channels_of_squeeze_excite_are_not_fitted_to_a_map() -> None:
    model = outline("seresnet18", "test", num_classes=2)
    assert not [name for name in refitted_layers(family_of(model), model) if ".se." in name]


def test_a_shallower_vggs_last_convolution_of_a_stage_answers_for_the_rest_of_the_stage() -> None:
    teacher, student = (outline(name, "test", num_classes=2) for name in ("vgg19", "vgg16"))
    family = family_of(teacher)
    recovery = family.require_recovery()
    names = list(family.blocks(student))
    assert names == [f"{stage}.{place}" for stage, depth in enumerate((2, 2, 3, 3, 3)) for place in range(depth)][1:]
    assert recovery.layer_name(student, "4.0", "conv") == "features.24"
    assert recovery.layer_name(teacher, "4.0", "conv") == "features.28"
    spans = ChannelMap._spans(list(family.blocks(student)), list(family.blocks(teacher)))
    assert spans["2.1"] == ["2.1"]
    assert spans["2.2"] == ["2.2", "2.3"]
    assert [other for span in spans.values() for other in span] == list(family.blocks(teacher))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [1, "same"])
def test_a_convolution_is_a_matrix_on_its_patches(stride: int, padding: Any) -> None:
    torch.manual_seed(0)
    layer: Any = create_conv2d(3, 4, 3, stride=stride, padding=padding, bias=False)
    images = torch.randn(2, 3, 9, 10)
    rows = input_rows(layer, images)
    expected = layer(images).flatten(2).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(rows @ layer.weight.flatten(1).T, expected, rtol=1e-4, atol=1e-5)


def test_patches_are_added_in_parts_that_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, images = nn.Conv2d(3, 4, 3, padding=1), torch.randn(5, 3, 8, 8)
    targets = torch.randn(5, 64, 4)
    whole, parts, sizes = NormalEquations(layer), NormalEquations(layer), list[int]()
    whole.add(input_rows(layer, images), targets)
    monkeypatch.setattr(normal_equations, "_PATCH_ELEMENTS", 2 * 64 * 27)
    monkeypatch.setattr(
        normal_equations, "input_rows", lambda layer, part: sizes.append(len(part)) or input_rows(layer, part)
    )
    parts.add_layer(layer, images, targets)
    assert sizes == [2, 2, 1]
    torch.testing.assert_close(parts.gram, whole.gram, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(parts.cross, whole.cross, rtol=1e-5, atol=1e-4)
    assert parts.count == whole.count == 5 * 64


@pytest.mark.parametrize(("architecture", "largest"), [("resnet50", 256 * 56**2), ("vgg16", 64 * 224**2)])
def test_memory_is_planned_for_the_largest_map(architecture: str, largest: int) -> None:
    """In a bottleneck network, the blocks write four times the channels of the stem."""
    model = outline(architecture, "test", num_classes=2)
    assert num_stream_elements(model, family_of(model).require_recovery(), 224) == largest


@pytest.mark.parametrize("architecture", ["vgg11_bn", "resnet18"])
def test_a_run_recovers_and_trains(architecture: str, shared_images: Path, tmp_path: Path) -> None:
    teacher = save(tmp_path / "teacher", architecture)
    words = ("--recover", "labelled", "--recover-views", 1, "--recover-epochs", 1, "--image-size", SIZE)
    run = trained(shared_images, teacher, tmp_path / "run", *words)
    student = read_json(run / "recovery.json")["student"]
    assert [layer["after"] > layer["before"] for layer in student["layers"]].count(True) > 0.9 * len(student["layers"])
    assert read_json(run / "metrics.json")["recover_num_steps"] > 0
