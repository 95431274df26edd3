"""What an error inside a teacher changes in its logits, and students that spare it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.recovering import batches, beside, refit_batches
from twinbud.config.recovery import RecoveryConfig
from twinbud.recovery.channel_map import ChannelMap
from twinbud.recovery.classifier import refit_classifier
from twinbud.recovery.importance import with_indices
from twinbud.recovery.least_squares import NO_WEIGHTS, refit_layers
from twinbud.recovery.logit_effects import LogitEffects, measure_effects
from twinbud.recovery.normal_equations import NormalEquations
from twinbud.recovery.stream_statistics import measure_stream
from twinbud.recovery.subspace import principal_subspace, project_weights
from twinbud.tasks.single import SINGLE_LABEL

NUM_TOKENS, NUM_CLASSES = 17, 3
"""A class token and 4 × 4 patches; classes of the teachers below."""


@pytest.fixture
def pair() -> ChannelMap:
    """A student beside a teacher whose classifier reads the class token."""
    pair = beside("vit", attention="heads")
    for network, seed in ((pair.teacher, 0), (pair.student, 1)):
        network.reset_classifier(NUM_CLASSES)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(network.head.weight, std=0.5, generator=generator)
    return pair


def effects_of(pair: ChannelMap, seed: int = 0, count: int = 1) -> LogitEffects:
    return measure_effects(
        pair.teacher,
        pair.family,
        refit_batches(28) * count,
        task=SINGLE_LABEL,
        num_positions=NUM_TOKENS,
        seed=seed,
    )


def fitted(pair: ChannelMap, effects: LogitEffects | None) -> float:
    """The divergence of the student's probabilities from the teacher's, on new images."""
    subspace = principal_subspace(
        measure_stream(pair.teacher, pair.family, refit_batches(28)),
        pair.plan,
        pair.pair_role,
        stream_width="residual",
        with_auxiliary=False,
        seed=0,
        effects=effects,
    )
    plan = with_indices(pair.plan, subspace.kept, pair.pair_role)
    state = project_weights(subspace, plan, pair.teacher, pair.student, pair.family, pair.pair_role)
    pair.student.load_state_dict(state, strict=False)
    projected = replace(pair, plan=plan, stream_maps={"residual": subspace.stream_map})
    weights: Mapping[str, torch.Tensor] = effects.position_weights if effects else NO_WEIGHTS
    refit_layers(projected, refit_batches(28), position_weights=weights)
    refit_classifier(pair.student, pair.teacher, refit_batches(28))
    images = torch.cat(batches(28, seed=1, count=8))
    with torch.no_grad():
        return SINGLE_LABEL.divergence(pair.student(images), pair.teacher(images), 1.0).item()


@pytest.fixture
def only_last_norm(monkeypatch: pytest.MonkeyPatch, pair: ChannelMap) -> None:
    """The others would add to the sums over all norms."""
    monkeypatch.setattr(type(pair.family.require_recovery()), "stream_norms", lambda *_: {"norm": ()})


@pytest.mark.usefixtures("only_last_norm")
def test_gradients_have_the_moments_of_the_jacobian(pair: ChannelMap) -> None:
    """What the last norm returns at the class token, the classifier multiplies by its weights."""
    jacobian_KD = (pair.teacher.head.weight * pair.teacher.norm.weight).detach().double()
    with torch.no_grad():
        logits = torch.cat([pair.teacher(batch.images_BCSS) for batch in refit_batches(28)]).double()
    p_RK = (logits / 4).softmax(dim=1)
    curvature_KK = torch.diag(p_RK.sum(dim=0)) - p_RK.T @ p_RK
    expected = 40 * jacobian_KD.T @ curvature_KK @ jacobian_KD
    found = effects_of(pair, count=40).gradients
    assert float((found - expected).norm() / expected.norm()) < 0.15


@pytest.mark.usefixtures("only_last_norm")
def test_moments_count_each_token_by_its_gradient(pair: ChannelMap) -> None:
    """At the last norm, only class tokens count: patches have no gradient."""
    seen: list[torch.Tensor] = []
    pair.teacher.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    found = effects_of(pair).moments
    tokens = F.layer_norm(torch.cat(seen)[:, 0], (32,)).double()
    outside = torch.eye(32, dtype=torch.float64) - torch.linalg.pinv(tokens) @ tokens
    assert float((outside @ found @ outside).trace()) < 1e-4 * float(found.trace())
    patches = F.layer_norm(torch.cat(seen)[:, 1:].flatten(0, 1), (32,)).double()
    assert float((patches @ outside).square().sum()) > 0.01 * float(patches.square().sum()), "patches span more"


def test_where_the_classifier_reads_the_class_token_patches_count_less_and_less(pair: ChannelMap) -> None:
    weights = effects_of(pair).position_weights
    assert set(weights) == {
        f"blocks.{n}.{layer}" for n in (0, 1) for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    for each in weights.values():
        assert each.mean().item() == pytest.approx(1, rel=1e-5)
    last = weights["blocks.1.mlp.fc2"]
    assert last[1:].tolist() == pytest.approx([0.3] * (NUM_TOKENS - 1)), "no later layer reads them"
    assert weights["blocks.0.mlp.fc2"][1:].min() > 0.3


def test_neurons_that_the_logits_do_not_feel_are_left_out(pair: ChannelMap) -> None:
    """However large what they add to the stream is."""
    block = pair.teacher.blocks[1]
    with torch.no_grad():
        readers = torch.cat([pair.teacher.head.weight * pair.teacher.norm.weight, torch.ones(1, 32)])
        unread = torch.linalg.svd(readers).Vh[len(readers) :]
        block.mlp.fc2.weight[:, 1::2] = 1e-3 * unread[:1].T
        block.mlp.fc2.bias.zero_()
    found = effects_of(pair).importance["mlp/blocks.1"]
    assert found[::2].min() > found[1::2].max()


def test_the_logits_are_nearer_to_the_teachers_than_without(pair: ChannelMap) -> None:
    plain = fitted(pair, None)
    assert fitted(pair, effects_of(pair)) < 0.8 * plain


def test_the_same_seed_gives_the_same_effects(pair: ChannelMap) -> None:
    first, again, other = effects_of(pair), effects_of(pair), effects_of(pair, seed=1)
    assert torch.equal(first.gradients, again.gradients)
    assert not torch.equal(first.gradients, other.gradients)
    assert all(tensor.grad is None for tensor in pair.teacher.parameters())


@pytest.mark.parametrize("bias", [True, False])
def test_a_row_of_weight_three_counts_as_three_rows(bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(4, 2, bias=bias)
    inputs, targets = torch.randn(6, 4, generator=generator), torch.randn(6, 2, generator=generator)
    weights = torch.tensor([1, 3, 0, 2, 1, 1])
    weighted, repeated = NormalEquations(layer), NormalEquations(layer)
    weighted.add(inputs, targets, weights)
    repeated.add(inputs.repeat_interleave(weights, dim=0), targets.repeat_interleave(weights, dim=0))
    for name in ("gram", "cross", "power", "total"):
        torch.testing.assert_close(getattr(weighted, name), getattr(repeated, name), rtol=1e-5, atol=1e-5)
    assert weighted.count == repeated.count


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({}, True),
        ({"recover_stream": "subspace"}, True),
        ({"recover_metric": "variance"}, False),
        ({"recover_stream": "channels"}, False),
        ({"recover_method": "corp"}, False),
        ({"recover": "none"}, False),
    ],
    ids=str,
)
def test_the_setting_needs_the_logits_of_a_teacher(changes: dict[str, Any], needed: bool) -> None:
    settings: dict[str, Any] = {"recover": "labelled", "recover_stream": "auto", "recover_metric": "logits"}
    assert RecoveryConfig(**(settings | changes)).reads_logits is needed
