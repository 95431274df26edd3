"""A student whose residual stream is the teacher's, seen through its principal subspace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers.builders import CONVNEXT, VIT, random_model
from helpers.recovering import batches, beside, refit_batches
from twinbud.core.errors import TwinbudError
from twinbud.models.families.registry import family_of
from twinbud.recovery.channel_map import ChannelMap
from twinbud.recovery.feature_matching import FeatureMatchingLoss
from twinbud.recovery.importance import with_indices
from twinbud.recovery.least_squares import refit_layers
from twinbud.recovery.stream_statistics import StreamStatistics, measure_stream
from twinbud.recovery.subspace import Subspace, principal_subspace, project_weights, zero_sum_rows

LIVE_HEADS = {"heads/blocks.0": (0, 3), "heads/blocks.1": (1, 2)}
NUM_DIRECTIONS = 15
"""One fewer than the small student has channels."""


def measured(pair: ChannelMap) -> StreamStatistics:
    return measure_stream(pair.teacher, pair.family, refit_batches(28))


def subspace_of(pair: ChannelMap, **changes: Any) -> Subspace:
    settings = {"stream_width": "residual", "with_auxiliary": False, "seed": 0, **changes}
    return principal_subspace(measured(pair), pair.plan, pair.pair_role, **settings)


def projected(pair: ChannelMap, **changes: Any) -> ChannelMap:
    """The pair after the student's weights have been replaced by the teacher's, seen through the subspace."""
    subspace = subspace_of(pair, **changes)
    plan = with_indices(pair.plan, subspace.kept, pair.pair_role)
    state = project_weights(subspace, plan, pair.teacher, pair.student, pair.family, pair.pair_role)
    pair.student.load_state_dict(state, strict=False)
    return replace(pair, plan=plan, stream_maps={"residual": subspace.stream_map})


@torch.no_grad()
def confined(pair: ChannelMap) -> ChannelMap:
    """A teacher whose stream stays in as many directions as the student has, and half of whose parts do nothing."""
    teacher, generator = pair.teacher, torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(32, NUM_DIRECTIONS, generator=generator))[0]
    onto = directions @ directions.T
    teacher.patch_embed.proj.weight.copy_(10 * torch.einsum("ab,bijk->aijk", onto, teacher.patch_embed.proj.weight))
    tokens = [tensor for name, tensor in teacher.named_parameters() if name.endswith(("_token", "pos_embed"))]
    for tensor in (teacher.patch_embed.proj.bias, *tokens):
        tensor.copy_(10 * tensor @ onto)
    for number, block in enumerate(teacher.blocks):
        for layer, layer_scale in ((block.attn.proj, block.ls1), (block.mlp.fc2, block.ls2)):
            scale = layer_scale.gamma.add_(1) if hasattr(layer_scale, "gamma") else torch.ones(32)
            layer.weight.copy_(onto @ (scale[:, None] * layer.weight) / scale[:, None])
            layer.bias.copy_(onto @ (scale * layer.bias) / scale)
        dead = [head for head in range(4) if head not in LIVE_HEADS[f"heads/blocks.{number}"]]
        block.attn.proj.weight.unflatten(1, (4, 8))[:, dead] = 0
        block.mlp.fc2.weight[:, number::2] = 0
    return pair


def states(pair: ChannelMap) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The residual stream of the student and that of the teacher in the student's channels, block by block."""
    (images,) = batches(28, seed=1, count=1)
    with torch.no_grad():
        *ours, _ = pair.student_streams(images)
        *theirs, _ = pair.teacher_streams(images)
    for block, student, teacher in zip(pair.blocks, ours, theirs, strict=True):
        yield student, pair.student_stream(block.name, teacher)


@pytest.mark.parametrize("kind", ["vit", "plain vit", "distilled vit", "vit with registers", "vit with query norms"])
def test_a_teacher_that_needs_no_more_directions_is_reproduced(kind: str) -> None:
    pair = projected(confined(beside(kind, attention="heads")))
    for student, teacher in states(pair):
        assert float(teacher.std()) > 0.5
        assert torch.allclose(student, teacher, atol=1e-4)


def test_what_does_nothing_is_left_out() -> None:
    subspace = subspace_of(confined(beside("vit", attention="heads")))
    assert {name: kept for name, kept in subspace.kept.items() if name in LIVE_HEADS} == LIVE_HEADS
    assert subspace.kept["mlp/blocks.0"] == tuple(range(1, 128, 2))
    assert subspace.kept["mlp/blocks.1"] == tuple(range(0, 128, 2))
    assert subspace.explained == pytest.approx(1, abs=1e-6)


def test_the_student_is_the_same_however_the_teachers_channels_are_ordered() -> None:
    pair = beside("vit", attention="heads")
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    first = projected(pair)
    found = {name: tensor.clone() for name, tensor in first.student.state_dict().items()}
    specs, state = pair.family.specs(pair.teacher), pair.teacher.state_dict()
    for name, spec in specs.items():
        for dimension, axis in spec.widths():
            if axis.width == "residual":
                state[name] = state[name].index_select(dimension, order)
    pair.teacher.load_state_dict(state)
    second = projected(pair)
    first_map, second_map = (each.stream_maps["residual"] for each in (first, second))
    assert torch.allclose(second_map, first_map[order], atol=1e-4)
    assert all(torch.allclose(t, found[n], atol=1e-4) for n, t in second.student.state_dict().items())


def test_least_squares_bring_it_nearer_to_its_teacher() -> None:
    def distance(pair: ChannelMap) -> float:
        *_, (student, teacher) = states(pair)
        return float((student - teacher).square().mean() / teacher.var())

    pair = projected(beside("vit", attention="heads"))
    before = distance(pair)
    fits = refit_layers(pair, refit_batches(28))
    assert distance(pair) < 0.7 * before
    assert all(fit.after > fit.before for fit in fits if fit.layer.endswith(("attn.proj", "mlp.fc2")))


@pytest.mark.parametrize("swap_roles", [False, True])
def test_student_and_auxiliary_share_no_direction_no_head_and_no_neuron(swap_roles: bool) -> None:
    pair = beside("vit", attention="heads", swap_roles=swap_roles)
    first = subspace_of(pair, with_auxiliary=True)
    second = subspace_of(replace(pair, pair_role="auxiliary"), with_auxiliary=True)
    assert torch.allclose(first.stream_map.T @ second.stream_map, torch.zeros(16, 16), atol=1e-5)
    for name, kept in first.kept.items():
        assert len(kept) == len(second.kept[name])
        assert not set(kept) & set(second.kept[name])
    assert (first.explained > second.explained) is not swap_roles, "the largest eigenvalue is the student's"
    alone = subspace_of(pair)
    assert alone.explained > max(first.explained, second.explained)


def test_the_map_has_orthonormal_directions_that_sum_to_zero_and_its_seed() -> None:
    rows = zero_sum_rows(16, seed=0)
    assert torch.allclose(rows @ rows.T, torch.eye(15, dtype=torch.float64))
    assert torch.allclose(rows.sum(dim=1), torch.zeros(15, dtype=torch.float64), atol=1e-12)
    assert torch.equal(rows, zero_sum_rows(16, seed=0))
    assert not torch.allclose(rows, zero_sum_rows(16, seed=1))


def test_moments_and_importance_are_those_of_all_tokens() -> None:
    """Against NumPy: the stream before the last block's MLP is what its second norm is given."""
    pair = beside("vit")
    found, block = measured(pair), pair.teacher.blocks[1]
    seen: dict[str, list[np.ndarray[Any, Any]]] = {"norm2": [], "attn.proj": [], "mlp.fc2": []}
    for name, rows in seen.items():
        block.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, rows=rows: rows.append(inputs[0].double().flatten(0, 1).numpy())
        )
    for images, _ in refit_batches(28):
        pair.teacher(images)
    stream, heads, neurons = (np.concatenate(rows) for rows in seen.values())
    normalized = (stream - stream.mean(axis=1, keepdims=True)) / stream.std(axis=1, keepdims=True)
    assert found.moments["blocks.1.norm2"].numpy() == pytest.approx(np.cov(normalized.T, bias=True) + np.outer(
        normalized.mean(axis=0), normalized.mean(axis=0)), abs=1e-3)  # fmt: skip
    assert found.moments.keys() == {f"blocks.{n}.norm{m}" for n in (0, 1) for m in (1, 2)} | {"norm"}
    for layer, scale, inputs, unit, width in (
        (block.attn.proj, block.ls1.gamma, heads, 8, "heads"), (block.mlp.fc2, block.ls2.gamma, neurons, 1, "mlp"),
    ):  # fmt: skip
        weight = (layer.weight * scale[:, None]).double().numpy()
        for number in (0, 3):
            part = slice(number * unit, (number + 1) * unit)
            lengths = np.linalg.norm(inputs[:, part] @ weight[:, part].T, axis=1)
            expected = np.sqrt(np.square(lengths).mean())
            assert found.importance[f"{width}/blocks.1"][number].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("blocks", [False, True])
def test_matching_compares_with_the_projected_stream(blocks: bool) -> None:
    pair = projected(confined(beside("vit", attention="heads")))
    matching, images = FeatureMatchingLoss(pair, target="own", blocks=blocks), batches(28)[0]
    with torch.no_grad():
        targets = matching.targets(pair.teacher_streams(images))
        *_, last, _ = pair.teacher_streams(images)
        assert len(targets) == (3 if blocks else 1)
        assert "residual" in pair.stream_maps
        assert torch.allclose(targets[-1], F.layer_norm(last @ pair.stream_maps["residual"], (16,)), atol=1e-5)
        assert matching(pair.student_streams(images), targets).item() == pytest.approx(0, abs=1e-5)


def test_a_map_to_all_channels_starts_as_the_subspace() -> None:
    pair = projected(beside("vit", attention="heads"))
    matching = FeatureMatchingLoss(pair, target="all", blocks=False)
    assert matching.map is not None
    assert "residual" in pair.stream_maps
    assert torch.equal(matching.map.weight, pair.stream_maps["residual"])


@pytest.mark.parametrize(
    ("architecture", "arguments", "said"),
    [
        ("convnext_tiny", CONVNEXT, "networks like ConvNeXt"),
        ("vit_tiny_patch16_224", {**VIT, "pre_norm": True}, "ViTs with a norm before the first block"),
        ("vit_tiny_patch16_224", {**VIT, "norm_layer": "rmsnorm"}, "ViTs with other norms than LayerNorm"),
    ],
)
def test_a_network_with_another_stream_is_refused(architecture: str, arguments: dict[str, Any], said: str) -> None:
    model = random_model(architecture, num_classes=2, **arguments)
    recovery = family_of(model).require_recovery()
    with pytest.raises(TwinbudError, match=f"--recover-stream subspace: it does not support {said}"):
        recovery.stream_norms(model)


def test_a_teacher_whose_features_overflow_is_the_one_that_is_named() -> None:
    teacher = random_model("vit_tiny_patch16_224", **VIT)
    with torch.no_grad():
        teacher.blocks[0].mlp.fc2.bias.fill_(torch.finfo(torch.float32).max)
    with pytest.raises(TwinbudError, match="features of the teacher are not finite"):
        measure_stream(teacher, family_of(teacher), refit_batches(28))
