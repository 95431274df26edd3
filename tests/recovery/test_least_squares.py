"""Least squares gives a student's layers back what the teacher says at the student's channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers.builders import CONVNEXT, save_teacher
from helpers.recovering import TEACHERS, batches, beside, image_size, refit_batches, whole
from twinbud.models.families.base import RecoverySupport
from twinbud.models.selection import PairRole
from twinbud.models.selection_io import select
from twinbud.models.student_pair import build_student_pair
from twinbud.models.teacher import open_teacher_at, read_teacher_info
from twinbud.recovery.channel_map import ChannelMap
from twinbud.recovery.least_squares import layer_inputs, refit_layers
from twinbud.recovery.normal_equations import RIDGES, NormalEquations, fit_layer, input_rows, matrix, put_matrix


def distance(pair: ChannelMap, images: torch.Tensor) -> float:
    """How far the stream after the last block is from the teacher's at the student's channels."""
    with torch.no_grad():
        *_, ours, _ = pair.student_streams(images)
        *_, theirs, _ = pair.teacher_streams(images)
    targets = pair.recovery.tokens(theirs)[..., pair.stream_channels(pair.blocks[-1].name)]
    return float((pair.recovery.tokens(ours) - targets).square().mean() / targets.var())


@pytest.mark.parametrize("pair_role", ["student", "auxiliary"])
@pytest.mark.parametrize("kind", TEACHERS)
def test_a_reconstructed_student_is_nearer_to_its_teacher_also_on_images_it_has_not_seen(
    kind: str, pair_role: PairRole
) -> None:
    pair = beside(kind, pair_role)
    before = distance(pair, *batches(image_size(kind), seed=1, count=1))
    fits = refit_layers(pair, refit_batches(image_size(kind)))
    assert distance(pair, *batches(image_size(kind), seed=1, count=1)) < 0.7 * before
    assert sum(fit.after > fit.before for fit in fits) > 0.9 * len(fits)


@pytest.mark.parametrize(
    "settings", [{"rule": "consecutive"}, {"rule": "random", "seed": 3}, {"attention": "heads"}, {"swap_roles": True}]
)
def test_it_does_so_whatever_was_selected(settings: dict[str, Any]) -> None:
    pair, (unseen,) = beside("vit", **settings), batches(28, seed=1, count=1)
    before = distance(pair, unseen)
    refit_layers(pair, refit_batches(28))
    assert distance(pair, unseen) < 0.7 * before


@pytest.mark.parametrize("kind", TEACHERS)
def test_the_branches_of_a_block_are_the_block(kind: str) -> None:
    pair = beside(kind)
    with torch.no_grad():
        stream = pair.recovery.embed(pair.teacher, batches(image_size(kind))[0])
        for block in pair.family.blocks(pair.teacher).values():
            expected = block(stream)
            for branch in pair.recovery.branches(block):
                stream = branch.forward(stream)
            assert torch.equal(stream, expected)


@pytest.mark.parametrize("kind", TEACHERS)
def test_the_stream_through_all_blocks_is_what_the_network_computes(kind: str) -> None:
    """Positions that a network gives its blocks beside the stream are part of it."""
    pair, (images,) = beside(kind), batches(image_size(kind), count=1)
    *_, final = pair.teacher_streams(images)
    with torch.no_grad():
        torch.testing.assert_close(final, pair.teacher.forward_features(images))


@pytest.mark.parametrize("kind", ["vit", "convnext", "convolutions", "swin", "mixer", "gated dinov3"])
def test_a_pass_that_ends_at_a_layer_finds_the_input_that_a_whole_pass_has(kind: str) -> None:
    pair, found, reached = beside(kind), [], []
    with torch.no_grad():
        stream = pair.recovery.embed(pair.student, batches(image_size(kind))[0])
        for block in (pair.student for pair in pair.blocks):
            for branch in pair.recovery.branches(block):
                layers = [block.get_submodule(linear.name) for linear in branch.linears]
                found += [layer_inputs(branch.forward, layer, stream) for layer in layers]
                for layer in layers:
                    layer.register_forward_pre_hook(lambda _, inputs: reached.append(inputs[0]))
                stream = branch.forward(stream)
    assert len(found) == len(reached) > 5
    assert all(torch.equal(one, other) for one, other in zip(found, reached, strict=True))


@pytest.mark.parametrize("kind", TEACHERS)
def test_the_stream_after_a_block_is_that_of_the_refitted_student(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although least squares adds what the last layer of a branch writes to the stream before it."""
    pair, found = beside(kind), list[torch.Tensor]()
    adding = type(pair.recovery).add

    def watched(self: RecoverySupport, stream: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        found.append(adding(self, stream, tokens))
        return found[-1]

    monkeypatch.setattr(type(pair.recovery), "add", watched)
    seen = refit_batches(image_size(kind))
    refit_layers(pair, seen)
    with torch.no_grad():
        *_, expected, _ = pair.student_streams(seen[-1].images_BCSS)
    assert torch.allclose(found[-1], expected, atol=1e-4)


def test_nothing_after_the_layer_is_computed_in_such_a_pass() -> None:
    pair = beside("vit")
    block = pair.blocks[0].student
    attention, _ = pair.recovery.branches(block)
    block.attn.proj.register_forward_hook(lambda *_: pytest.fail("the projection was computed"))
    stream = pair.recovery.embed(pair.student, batches(28)[0])
    assert layer_inputs(attention.forward, block.attn.proj, stream).shape == stream.shape


def test_every_layer_that_mixes_channels_is_fitted_once_and_in_order() -> None:
    done: list[int] = []
    fits = refit_layers(beside("vit"), refit_batches(28), on_layer=done.append)
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert [fit.layer for fit in fits] == [f"blocks.{number}.{part}" for number in range(2) for part in parts]
    assert done == list(range(1, 9))
    convnext = [fit.layer for fit in refit_layers(beside("convnext"), refit_batches(64))]
    assert convnext[4:7] == ["stages.1.downsample.1", "stages.1.blocks.0.mlp.fc1", "stages.1.blocks.0.mlp.fc2"]
    assert len(convnext) == 2 * 9 + 3
    swin = [fit.layer for fit in refit_layers(beside("swin"), refit_batches(32))]
    assert swin[8:10] == ["layers.1.downsample.reduction", "layers.1.blocks.0.attn.qkv"]
    assert len(swin) == 4 * 5 + 2
    mixer = [fit.layer for fit in refit_layers(beside("mixer"), refit_batches(32))]
    assert mixer == [f"blocks.{number}.mlp_channels.{part}" for number in range(3) for part in ("fc1", "fc2")]


@pytest.mark.parametrize("kind", ["plain vit", "dinov3", "swin", "swin with padding", "mixer", "resmlp", "gmlp"])
def test_a_student_as_wide_as_its_teacher_has_nothing_to_gain(kind: str) -> None:
    """To the rounding of float32 sums, which R² magnifies where the targets' mean exceeds their deviation by far.

    A weight may change where its inputs hardly vary; what the student computes does not.
    """
    pair, (unseen,) = whole(kind), batches(image_size(kind), seed=1, count=1)
    fits = refit_layers(pair, refit_batches(image_size(kind)))
    assert all(fit.before == pytest.approx(1, abs=1e-3) for fit in fits)
    assert all(fit.after == pytest.approx(fit.before, abs=1e-5) for fit in fits)
    assert distance(pair, unseen) < 1e-9


def rows_of_data(count: int, seed: int, noise: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and what one linear map makes of them, the same for every seed, but for noise."""
    generator, truth = (torch.Generator().manual_seed(number) for number in (seed, 99))
    inputs = torch.randn(count, 6, generator=generator)
    return inputs, inputs @ torch.randn(6, 4, generator=truth) + noise * torch.randn(count, 4, generator=generator)


def equations_of(layer: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> NormalEquations:
    """Summed in two parts."""
    equations, half = NormalEquations(layer), len(inputs) // 2
    equations.add(inputs[:half], targets[:half])
    equations.add(inputs[half:], targets[half:])
    return equations


@pytest.mark.parametrize("ridge", [1e-3, 0.3])
def test_the_solution_is_that_of_ridge_regression_towards_the_weights_before(ridge: float) -> None:
    """Against NumPy's least squares on the same problem written out: rows of data above rows of the prior."""
    layer, (inputs, targets) = nn.Linear(6, 4), rows_of_data(50, seed=0)
    start = matrix(layer).double().detach()
    rows = np.concatenate([inputs.double().numpy(), np.ones((50, 1))], axis=1)
    prior = np.sqrt(ridge * np.square(rows).sum(axis=0).mean()) * np.eye(7)
    stacked = np.concatenate([rows, prior])
    stacked_targets = np.concatenate([targets.double().numpy(), prior @ start.numpy()])
    expected = np.linalg.lstsq(stacked, stacked_targets, rcond=None)[0]
    equations = equations_of(layer, inputs, targets)
    found = equations.solve(start, ridge)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    error = np.square(rows @ expected - targets.numpy()).sum()
    explained = 1 - error / (targets.double().numpy().var(axis=0) * 50).sum()
    assert equations.explained(found) == pytest.approx(explained, abs=1e-6)


def test_the_ridge_is_the_one_that_unseen_rows_ask_for_and_they_are_learned_from_in_the_end() -> None:
    layer = nn.Linear(6, 4)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    start = matrix(layer).double().detach()
    few, many = rows_of_data(8, seed=1, noise=1.0), rows_of_data(400, seed=2)
    learned, held_out = equations_of(layer, *few), equations_of(layer, *many)
    by_hand = {ridge: held_out.explained(learned.solve(start, ridge)) for ridge in RIDGES}
    with torch.no_grad():
        before, after, ridge = fit_layer(layer, learned, held_out)
    assert before == held_out.explained(start)
    assert ridge == max(by_hand, key=by_hand.__getitem__)
    assert after == pytest.approx(by_hand[ridge], abs=1e-9)
    assert min(RIDGES) < ridge < max(RIDGES)
    together = equations_of(layer, *(torch.cat(pair) for pair in zip(few, many, strict=True)))
    assert torch.allclose(matrix(layer).double(), together.solve(start, ridge), atol=1e-5)


def test_a_sum_of_wide_inputs_is_symmetric_and_exact() -> None:
    """Inputs of several panels, of which only the upper triangle is computed."""
    inputs, targets = torch.randn(2, 20, 600, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layer = nn.Linear(600, 600, dtype=torch.float64)
    equations = equations_of(layer, inputs, targets)
    rows = torch.cat([inputs, torch.ones(20, 1, dtype=torch.float64)], dim=1)
    assert torch.allclose(equations.gram, equations.gram.T, rtol=0, atol=1e-5)
    assert torch.allclose(equations.gram, rows.T @ rows, atol=1e-4)
    assert torch.allclose(equations.cross, rows.T @ targets, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 4), (2, 5, 6)),
        (nn.Linear(6, 4, bias=False), (2, 3, 3, 6)),
        (nn.Conv2d(6, 4, kernel_size=2, stride=2), (2, 6, 8, 8)),
        (nn.Conv2d(6, 4, kernel_size=1), (2, 6, 3, 3)),
    ],
)
def test_a_layer_is_a_matrix_on_the_rows_of_its_input(layer: nn.Module, shape: tuple[int, ...]) -> None:
    inputs = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    rows, weights = input_rows(layer, inputs), matrix(layer).clone()
    if len(weights) > rows.shape[1]:
        rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
    outputs = layer(inputs)
    outputs = outputs.flatten(2).transpose(1, 2) if isinstance(layer, nn.Conv2d) else outputs
    assert torch.allclose(rows @ weights, outputs.flatten(0, -2), atol=1e-5)
    with torch.no_grad():
        put_matrix(layer, 2 * weights)
    assert torch.allclose(matrix(layer), 2 * weights)


def test_layer_scale_stays_as_it_is_and_is_made_up_for() -> None:
    """The layer times the scale is the fit; where the scale is 0, the layer stays as it was."""
    plain, scaled = nn.Linear(6, 4), nn.Linear(6, 4)
    scale = torch.tensor([0.5, -2.0, 1.0, 0.0])
    with torch.no_grad():
        put_matrix(plain, matrix(scaled) * scale)
        before = matrix(scaled).clone()
        learned, held_out = (equations_of(plain, *rows_of_data(50, seed)) for seed in (0, 1))
        without = fit_layer(plain, learned, held_out)
        within = fit_layer(scaled, learned, held_out, scale)
    assert within == pytest.approx(without)
    assert torch.allclose(matrix(scaled)[:, :3] * scale[:3], matrix(plain)[:, :3], atol=1e-6)
    assert torch.equal(matrix(scaled)[:, 3], before[:, 3])


def test_a_shallower_students_last_block_answers_for_the_rest_of_its_teacher(tmp_path: Path) -> None:
    pair = beside("convnext")
    lengths = {block.name: len(block.teacher) for block in pair.blocks}
    assert lengths["stages.2.blocks.2"] == 1
    deep = save_teacher(tmp_path / "deep", "convnext_tiny", dims=CONVNEXT["dims"], depths=[3, 2, 9, 2])
    teacher_info = read_teacher_info(deep)
    selection = select(teacher_info)
    student = build_student_pair(selection, image_size=64, num_classes=2).student
    family = selection.student_spec.family
    pair = ChannelMap(
        student=student,
        teacher=open_teacher_at(teacher_info, family, 64),
        family=family,
        plan=selection.plan,
        pair_role="student",
    )
    lengths = {block.name: len(block.teacher) for block in pair.blocks}
    assert (lengths["stages.0.blocks.0"], lengths["stages.0.blocks.1"], lengths["stages.2.blocks.5"]) == (1, 2, 4)
    assert sum(lengths.values()) == 3 + 16
    with torch.no_grad():
        *_, end, _ = pair.teacher_streams(batches(64)[0])
        assert torch.allclose(end, pair.teacher.stages(pair.teacher.stem(batches(64)[0])), atol=1e-5)
    before = distance(pair, batches(64)[0])
    refit_layers(pair, refit_batches(64))
    assert distance(pair, batches(64)[0]) < 0.7 * before
