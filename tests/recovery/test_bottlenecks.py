"""Students of networks with linear bottlenecks, whose streams are projections of the teacher's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3

from helpers.command import trained
from helpers.convolutional import inverted_residuals, save_narrow_teacher
from helpers.recovering import batches, refit_batches
from helpers.runs import read_json
from twinbud.core.errors import TwinbudError
from twinbud.models.families.registry import family_of
from twinbud.models.families.streams import linear_streams
from twinbud.models.outline import outline
from twinbud.models.selection import PairRole, plan_selection
from twinbud.models.selection_io import select
from twinbud.models.student_pair import build_student_pair
from twinbud.models.teacher import open_teacher_at, read_teacher_info
from twinbud.recovery.batch_norms import renew_statistics
from twinbud.recovery.bottlenecks import (
    BottleneckSubspaces,
    _Covariance,
    absorb_batch_norms,
    channel_importance,
    choose_subspaces,
    measure_bottlenecks,
)
from twinbud.recovery.channel_map import ChannelMap
from twinbud.recovery.importance import with_indices
from twinbud.recovery.least_squares import refit_layers
from twinbud.recovery.projection import project_state
from twinbud.recovery.refit import Refit
from twinbud.recovery.refit_start import RefitStart

SIZE = 32
LINEAR = ("tf_efficientnet_lite0", "mobilenetv3_small_100", "tf_efficientnetv2_b0")
"""Networks with linear streams; a depthwise convolution reads those of MobileNetV4."""
Pairs = Callable[..., ChannelMap]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Makes a student beside its teacher; every call gives a student of its own."""

    @cache
    def made(architecture: str, student: str, pair_role: PairRole) -> ChannelMap:
        return beside(tmp_path_factory.mktemp("teacher"), architecture, student, pair_role)

    def pair(architecture: str, student: str = "half", pair_role: PairRole = "student") -> ChannelMap:
        found = made(architecture, student, pair_role)
        return replace(found, student=copy.deepcopy(found.student))

    return pair


def beside(folder: Path, architecture: str, student: str, pair_role: PairRole) -> ChannelMap:
    """A selected student and a narrow teacher whose batch norms have statistics of their own."""
    teacher = save_narrow_teacher(folder / architecture, architecture, 16)
    path, generator = folder / architecture / "model.safetensors", torch.Generator().manual_seed(1)
    state = load_file(path)
    for name, tensor in state.items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(0.5 + noise.square())
        elif tensor.dim() == 1 and tensor.is_floating_point():
            tensor.copy_(0.2 * noise + name.endswith("weight"))
        elif tensor.dim() == 4:
            tensor.copy_(noise * (2 / tensor[0].numel()) ** 0.5)
    save_file(state, path)
    info = read_teacher_info(teacher)
    selection = select(info, student, with_auxiliary=student == "half")
    student_pair = build_student_pair(selection, image_size=SIZE, num_classes=2)
    network = student_pair.student if pair_role == "student" else student_pair.auxiliary
    assert network is not None
    family = selection.student_spec.family
    return ChannelMap(
        student=network.eval(),
        teacher=open_teacher_at(info, family, SIZE),
        family=family,
        plan=selection.plan,
        pair_role=pair_role,
    )


def subspaces_of(pair: ChannelMap, *, with_auxiliary: bool = False) -> BottleneckSubspaces:
    statistics = measure_bottlenecks(pair.teacher, pair.family, refit_batches(SIZE))
    importance = channel_importance(statistics, pair.plan, with_auxiliary=with_auxiliary)
    return choose_subspaces(statistics, importance, pair.plan, pair.pair_role, with_auxiliary=with_auxiliary)


def projected(pair: ChannelMap) -> ChannelMap:
    """The pair after the student's weights have been replaced by the teacher's, seen through the subspaces."""
    found = subspaces_of(pair)
    plan = with_indices(pair.plan, found.kept, pair.pair_role)
    absorbed = absorb_batch_norms(pair.teacher, pair.family)
    state = project_state(absorbed, found.stream_maps, plan, pair.student, pair.family, pair.pair_role)
    pair.student.load_state_dict(state, strict=False)
    return replace(pair, plan=plan, stream_maps=found.stream_maps)


def error(pair: ChannelMap, images: torch.Tensor) -> float:
    """Of the maps after the last block, as a share of their variance."""
    with torch.no_grad():
        *_, ours, _ = pair.student_streams(images)
        *_, theirs, _ = pair.teacher_streams(images)
    target = pair.student_stream(pair.blocks[-1].name, pair.recovery.tokens(theirs))
    return float((pair.recovery.tokens(ours) - target).square().mean() / target.var())


@pytest.mark.parametrize(
    ("architecture", "missing"),
    [
        ("tf_efficientnet_lite0", {"run/conv_stem"}),
        ("efficientnet_b0", {"run/conv_stem"}),
        ("tf_efficientnetv2_s", {"run/conv_stem"}),
        ("mobilenetv2_100", {"run/conv_stem"}),
        # MobileNetV3 has an activation after its last convolutions, which read the stream before them
        ("mobilenetv3_large_100", {"run/conv_stem", "run/blocks.6.0"}),
    ],
)
def test_all_runs_of_inverted_residuals_are_linear(architecture: str, missing: set[str]) -> None:
    """But the stem's, which ends with an activation and is read by a depthwise convolution."""
    model = outline(architecture, "test", num_classes=2)
    family = family_of(model)
    runs = {axis.width for spec in family.specs(model).values() for _, axis in spec.widths() if axis.kind == "run"}
    assert runs - linear_streams(family, model) == missing


@pytest.mark.parametrize("architecture", ["resnet18", "vgg11_bn", "vit_tiny_patch16_224", "convnext_tiny"])
def test_streams_that_something_reads_channel_by_channel_are_not(architecture: str) -> None:
    model = outline(architecture, "test", num_classes=2)
    assert not linear_streams(family_of(model), model)


def test_runs_of_mobilenetv4_that_a_depthwise_layer_reads_are_not() -> None:
    model = outline("mobilenetv4_conv_small", "test", num_classes=2)
    family = family_of(model)
    read_by_channel = {
        axis.width for name, spec in family.specs(model).items() if "dw_start" in name for _, axis in spec.widths()
    }
    assert read_by_channel
    assert not read_by_channel & linear_streams(family, model)


@pytest.mark.parametrize("architecture", [*LINEAR, "mobilenetv4_conv_small"])
def test_the_branches_of_all_blocks_end_at_the_features(architecture: str, pairs: Pairs) -> None:
    pair, (images,) = pairs(architecture), batches(SIZE, count=1)
    with torch.no_grad():
        stream = pair.recovery.embed(pair.teacher, images)
        for block in pair.family.blocks(pair.teacher).values():
            for branch in pair.recovery.branches(block):
                stream = branch.forward(stream)
        features = pair.teacher.forward_head(pair.teacher.forward_features(images), pre_logits=True)
    torch.testing.assert_close(stream.mean(dim=(2, 3)), features, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", LINEAR)
def test_a_projection_onto_as_many_directions_as_the_teacher_has_computes_what_it_does(
    architecture: str, pairs: Pairs
) -> None:
    """The streams are rotated, and batch norms are absorbed; the features are the same."""
    pair, (images,) = projected(pairs(architecture, "same")), batches(SIZE, seed=1, count=1)
    features = [
        network.forward_head(network.forward_features(images), pre_logits=True)
        for network in (pair.student, pair.teacher)
    ]
    torch.testing.assert_close(*features, rtol=1e-3, atol=1e-4)
    rotation = next(iter(pair.stream_maps.values()))
    assert not torch.allclose(rotation, torch.eye(len(rotation)), atol=0.1)


@pytest.mark.parametrize("architecture", LINEAR)
def test_a_refit_brings_a_projected_student_nearer_to_its_teacher(architecture: str, pairs: Pairs) -> None:
    """Also on images that nothing was fitted to; the batch norms' new statistics then change nothing."""
    pair, (unseen,) = projected(pairs(architecture)), batches(SIZE, seed=1, count=1)
    before = error(pair, unseen)
    refit_layers(pair, refit_batches(SIZE))
    after = error(pair, unseen)
    assert after < 0.7 * before
    renew_statistics(pair.student, [batch.images_BCSS for batch in refit_batches(SIZE)])
    assert error(pair, unseen) == pytest.approx(after, rel=1e-3)


@pytest.mark.parametrize("architecture", LINEAR)
def test_a_refit_of_a_student_as_large_as_its_teacher_changes_nothing(architecture: str, pairs: Pairs) -> None:
    """Each layer meets its target before; activations that change their input leave the targets alone."""
    pair, (images,) = projected(pairs(architecture, "same")), batches(SIZE, seed=1, count=1)
    for fit in refit_layers(pair, refit_batches(SIZE)):
        assert fit.before == pytest.approx(1, abs=0.01), fit.layer
    assert error(pair, images) < 1e-5


@pytest.mark.parametrize(
    "blocks", [("ir_r3_k3_s2_e2_c12", "ir_r2_k3_s2_e2_c12"), ("cn_r3_k3_s1_c12", "cn_r2_k3_s1_c12")]
)
def test_a_shallower_student_is_refitted_to_the_teachers_later_blocks(blocks: tuple[str, str]) -> None:
    """In the second pair, blocks end with an activation and have no shortcut."""
    teacher, student = (
        inverted_residuals(EfficientNet, "ds_r1_k3_s1_e1_c8", each, num_features=num_features).eval()
        for each, num_features in zip(blocks, (20, 10), strict=True)
    )
    family = family_of(teacher)
    plan = plan_selection(teacher, student, family, with_auxiliary=False)
    pair = ChannelMap(student=student, teacher=teacher, family=family, plan=plan, pair_role="student")
    if linear_streams(family, teacher):
        pair = projected(pair)
    last = f"blocks.1.{len(student.blocks[1]) - 1}"
    (images,) = batches(SIZE, seed=1, count=1)

    def distance() -> float:
        with torch.no_grad():
            streams = zip(pair.blocks, pair.student_streams(images), pair.teacher_streams(images), strict=False)
            ours, theirs = next((one, other) for block, one, other in streams if block.name == last)
        target = pair.student_stream(last, pair.recovery.tokens(theirs))
        return float((pair.recovery.tokens(ours) - target).square().mean() / target.var())

    before = distance()
    refit_layers(pair, refit_batches(SIZE))
    assert distance() < 0.7 * before


def test_covariances_are_sums_of_float32_under_autocast() -> None:
    """Also of channels whose mean is many times their deviation."""
    generator = torch.Generator().manual_seed(0)
    rows = 100 + torch.randn(1000, 4, generator=generator)
    covariance = _Covariance()
    with torch.autocast("cpu", torch.bfloat16):
        for part in rows.split(300):
            covariance.add(part)
    torch.testing.assert_close(covariance.value, torch.cov(rows.double().T, correction=0), rtol=1e-4, atol=1e-4)


def test_readers_count_with_the_gain_of_their_batch_norm(pairs: Pairs) -> None:
    pair = pairs("tf_efficientnet_lite0")
    statistics = measure_bottlenecks(pair.teacher, pair.family, refit_batches(SIZE))
    block = pair.teacher.blocks[1][0]
    gain = (block.bn3.weight / (block.bn3.running_var + block.bn3.eps).sqrt()).double()
    (reader,) = statistics.readers["expansion/blocks.1.0"]
    expected = block.conv_pwl.weight.flatten(1).double().T * gain
    torch.testing.assert_close(reader.weight, expected)
    (head,) = statistics.readers["head"]
    assert torch.equal(head.weight, pair.teacher.classifier.weight.double().T)


def test_without_a_classifier_all_features_count_alike(pairs: Pairs) -> None:
    pair = pairs("tf_efficientnet_lite0")
    teacher = copy.deepcopy(pair.teacher)
    teacher.reset_classifier(0)
    (head,) = measure_bottlenecks(teacher, pair.family, refit_batches(SIZE)).readers["head"]
    assert torch.equal(head.weight, torch.eye(len(head.moments), dtype=torch.float64))


def test_a_teacher_whose_features_are_not_finite_is_an_error(pairs: Pairs) -> None:
    pair = pairs("tf_efficientnet_lite0")
    teacher = copy.deepcopy(pair.teacher)
    with torch.no_grad():
        teacher.conv_stem.weight[0] = torch.nan
    with pytest.raises(TwinbudError, match="features of the teacher are not finite"):
        measure_bottlenecks(teacher, pair.family, refit_batches(SIZE))


@pytest.mark.parametrize("pooling", ["max", "avgmax", "catavgmax"])
def test_pooling_that_reads_single_channels_leaves_no_linear_stream(pooling: str) -> None:
    for cls in (EfficientNet, MobileNetV3):
        model = inverted_residuals(cls, "ir_r2_k3_s2_e2_c12", global_pool=pooling)
        assert not linear_streams(family_of(model), model)


def test_the_subspaces_hold_more_of_the_streams_than_the_selected_channels(pairs: Pairs) -> None:
    pair = pairs("tf_efficientnet_lite0")
    statistics = measure_bottlenecks(pair.teacher, pair.family, refit_batches(SIZE))
    found = subspaces_of(pair)
    shares = []
    for width, covariance in statistics.covariances.items():
        channels = list(pair.plan.widths[width].of("student"))
        basis = found.stream_maps[width].double()
        inside, whole = (basis * (covariance @ basis)).sum(), covariance.trace()
        assert inside >= covariance.diagonal()[channels].sum()
        assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1]).double(), atol=1e-5)
        shares.append(float(inside / whole))
    assert found.explained == pytest.approx(sum(shares) / len(shares), abs=1e-6)
    assert 0.5 < found.explained < 1


@pytest.mark.parametrize("swap_roles", [False, True])
def test_student_and_auxiliary_take_different_directions_and_channels(swap_roles: bool, pairs: Pairs) -> None:
    student, auxiliary = (pairs("tf_efficientnet_lite0", pair_role=role) for role in ("student", "auxiliary"))
    first, second = (
        subspaces_of(replace(pair, plan=replace(pair.plan, swap_roles=swap_roles)), with_auxiliary=True)
        for pair in (student, auxiliary)
    )
    for width, stream_map in first.stream_maps.items():
        product = stream_map.T @ second.stream_maps[width]
        assert torch.allclose(product, torch.zeros_like(product), atol=1e-5)
    for width, kept in first.kept.items():
        assert len(kept) == len(second.kept[width])
        assert not set(kept) & set(second.kept[width])


def test_the_start_of_a_refit_returns_from_a_checkpoint(pairs: Pairs) -> None:
    found = subspaces_of(pairs("tf_efficientnet_lite0"))
    start = RefitStart(stream_maps=found.stream_maps, explained=found.explained, kept=found.kept)
    again = Refit.from_tensors(Refit(start=start).tensors(), []).start
    assert again == start
    assert {name: tensor.tolist() for name, tensor in again.stream_maps.items()} == {
        name: tensor.tolist() for name, tensor in start.stream_maps.items()
    }


def test_a_run_projects_refits_and_trains(shared_images: Path, tmp_path: Path) -> None:
    teacher = save_narrow_teacher(tmp_path / "teacher", "mobilenetv3_small_100", 16)
    words = ("--recover", "labelled", "--recover-stream", "subspace", "--attention", "heads", "--image-size", SIZE)
    run = trained(shared_images, teacher, tmp_path / "run", *words)
    student = read_json(run / "recovery.json")["student"]
    assert 0 < student["subspace_explained"] < 1
    assert any(width.startswith("expansion/") for width in student["kept"])
    assert student["layers"][-1]["layer"] == "conv_head"
