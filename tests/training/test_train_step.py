"""One step: what it minimises, what it moves, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import nn

from helpers.builders import CONVNEXT, VIT, random_model
from twinbud.core.errors import TwinbudError
from twinbud.models.student_pair import StudentPair
from twinbud.training.ema import ema_update
from twinbud.training.losses import total_loss
from twinbud.training.optimizer import Optimizer, lr_scales, parameter_groups
from twinbud.training.train_step import Objective, TrainingStep

OBJECTIVE: dict[str, Any] = {
    "alpha": 0.6, "beta": 0.9, "temperature": 4.0, "ce_temperature": 1.0, "clip_norm": None, "bf16": False,
}  # fmt: skip


def small_vit(seed: int) -> Any:
    return random_model("vit_tiny_patch16_224", seed, num_classes=3, **VIT)


def student_pair() -> StudentPair:
    return StudentPair(student=small_vit(0).train(), auxiliary=small_vit(1))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(4, 3, 28, 28, generator=generator), torch.tensor([0, 1, 2, 1])


def state(model: nn.Module | None) -> dict[str, torch.Tensor]:
    assert model is not None
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_step_is_adamw_on_equation_5_and_then_equation_7() -> None:
    """Against the same mathematics written out in float64, tensor by tensor."""
    pair = student_pair()
    pair.student.double()
    assert pair.auxiliary is not None
    pair.auxiliary.double()
    student, auxiliary = copy.deepcopy(pair.student), copy.deepcopy(pair.auxiliary)
    images, labels = batch()
    images = images.double()

    step = TrainingStep(pair, Objective(**OBJECTIVE), weight_decay=0.05)
    result = step(images, labels, 1e-2)

    with torch.no_grad():
        targets = auxiliary(images)
    losses = total_loss(student(images), targets, labels, alpha=0.6, temperature=4.0)
    losses.total.backward()
    assert result.losses.total.item() == pytest.approx(losses.total.item(), abs=1e-12)
    exempt = student.no_weight_decay()
    for name, parameter in student.named_parameters():
        decay = 0.0 if parameter.dim() <= 1 or name in exempt else 0.05
        gradient = parameter.grad
        # AdamW's first step with bias correction: m̂ = g, v̂ = g²
        expected = parameter.detach() * (1 - 1e-2 * decay) - 1e-2 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(pair.student.get_parameter(name), expected, rtol=0, atol=1e-9)
        behind = 0.9 * auxiliary.get_parameter(name) + 0.1 * pair.student.get_parameter(name).detach()
        torch.testing.assert_close(pair.auxiliary.get_parameter(name), behind, rtol=0, atol=1e-12)


def test_the_average_of_a_thousand_steps_can_be_replayed() -> None:
    student, auxiliary = nn.Linear(7, 5).double(), nn.Linear(7, 5).double()
    expected = [parameter.detach().clone() for parameter in auxiliary.parameters()]
    generator = torch.Generator().manual_seed(0)
    for _ in range(1000):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        ema_update(auxiliary, student, 0.9)
        expected = [0.9 * e + (1 - 0.9) * p.detach() for e, p in zip(expected, student.parameters(), strict=True)]
    for parameter, replayed in zip(auxiliary.parameters(), expected, strict=True):
        assert float((parameter - replayed).detach().abs().max()) <= 1e-12


def test_float_buffers_are_averaged_and_counters_copied() -> None:
    student, auxiliary = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    assert isinstance(student.running_mean, torch.Tensor)
    assert isinstance(student.num_batches_tracked, torch.Tensor)
    student.running_mean.fill_(1.0)
    student.num_batches_tracked.fill_(7)
    ema_update(auxiliary, student, 0.9)
    torch.testing.assert_close(auxiliary.running_mean, torch.full((3,), 0.1))
    assert auxiliary.num_batches_tracked == 7


@pytest.mark.parametrize(("beta", "frozen"), [(1.0, True), (0.0, False)])
def test_beta_one_freezes_the_auxiliary_and_zero_copies_the_student(beta: float, frozen: bool) -> None:
    pair = student_pair()
    before = state(pair.auxiliary)
    TrainingStep(pair, Objective(**{**OBJECTIVE, "beta": beta}), weight_decay=0.0)(*batch(), 1e-3)
    assert same(state(pair.auxiliary), before if frozen else state(pair.student))


def test_small_updates_are_not_lost_under_bf16() -> None:
    pair = student_pair()
    before = state(pair.auxiliary)
    TrainingStep(pair, Objective(**{**OBJECTIVE, "beta": 0.9999, "bf16": True}), weight_decay=0.0)(*batch(), 1e-3)
    after = state(pair.auxiliary)
    assert all(tensor.dtype == torch.float32 for tensor in after.values())
    moved = sum(int((after[name] != before[name]).sum()) for name in after)
    assert moved > 0.9 * sum(tensor.numel() for tensor in after.values())


def test_the_gradient_is_clipped_to_the_norm() -> None:
    pair = student_pair()
    step = TrainingStep(pair, Objective(**{**OBJECTIVE, "clip_norm": 0.01}), weight_decay=0.0)
    step(*batch(), 1e-3)
    norms = torch.stack([p.grad.norm() for p in pair.student.parameters() if p.grad is not None])
    assert float(norms.norm()) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("where", ["images", "student", "auxiliary"])
def test_a_non_finite_loss_stops_before_student_or_auxiliary_changes(where: str) -> None:
    pair = student_pair()
    step = TrainingStep(pair, Objective(**OBJECTIVE), weight_decay=0.05)
    images, labels = batch()
    step(images, labels, 1e-3)
    if where == "images":
        images[0, 0, 0, 0] = float("nan")
    else:
        getattr(pair, where).head.bias.data[0] = float("inf")
    before = state(pair.student), state(pair.auxiliary)
    with pytest.raises(TwinbudError, match=r"step 2: the loss is not finite \(loss nan"):
        step(images, labels, 1e-3)
    assert torch.equal(state(pair.student)["norm.weight"], before[0]["norm.weight"])
    assert all(torch.equal(after, before[1][name]) for name, after in state(pair.auxiliary).items())


@pytest.mark.parametrize("where", ["images", "student", "auxiliary"])
def test_a_step_that_does_not_wait_for_the_device_updates_nothing_and_tells_later(where: str) -> None:
    """As on a GPU: the flag stays on the device, and no network changes from the first bad step on."""
    pair = student_pair()
    assert pair.auxiliary is not None
    step = TrainingStep(pair, Objective(**OBJECTIVE), weight_decay=0.05, steps_per_epoch=3)
    step.optimizer.deferred = True
    images, labels = batch()
    step(images, labels, 1e-3)
    step.check()
    if where == "images":
        images[0, 0, 0, 0] = float("nan")
    else:
        getattr(pair, where).norm.bias.data[0] = float("nan")
    before = state(pair.student), state(pair.auxiliary)
    step(images, labels, 1e-3)
    step(*batch(), 1e-3)
    for found, kept in zip((state(pair.student), state(pair.auxiliary)), before, strict=True):
        for name, tensor in found.items():
            assert torch.equal(tensor.nan_to_num(), kept[name].nan_to_num()), name
    with pytest.raises(TwinbudError, match=r"step 2 \(epoch 1, batch 2\): the loss is not finite \(loss nan"):
        step.check()


@pytest.mark.parametrize("bf16", [False, True])
def test_waiting_for_the_device_or_not_gives_the_same_weights(bf16: bool) -> None:
    results = []
    for deferred in (False, True):
        pair = student_pair()
        assert pair.auxiliary is not None
        step = TrainingStep(pair, Objective(**{**OBJECTIVE, "bf16": bf16}), weight_decay=0.05)
        step.optimizer.deferred = deferred
        for _ in range(3):
            step(*batch(), 1e-3)
        results.append((state(pair.student), state(pair.auxiliary)))
    assert same(results[0][0], results[1][0])
    assert same(results[0][1], results[1][1])


def test_weight_decay_spares_vectors_tokens_and_positions() -> None:
    model = small_vit(0)
    groups = parameter_groups(model, 0.05)
    assert len(groups) == 2
    decayed, plain = sorted(groups, key=lambda group: -group["weight_decay"])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    spared = {names[id(p)] for p in plain["params"]}
    assert {"cls_token", "pos_embed", "norm.bias", "blocks.0.attn.qkv.bias"} <= spared
    assert plain["weight_decay"] == 0.0
    assert decayed["weight_decay"] == 0.05
    assert "blocks.0.attn.qkv.weight" not in spared
    assert len(spared) + len(decayed["params"]) == len(names)


def test_weight_decay_spares_what_timm_names_by_a_pattern() -> None:
    """XCiT's "pos_embed.*"."""
    model = timm.create_model("xcit_nano_12_p16_224", depth=1, num_classes=3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    plain = next(group for group in parameter_groups(model, 0.05) if not group["weight_decay"])
    spared = {names[id(parameter)] for parameter in plain["params"]}
    assert "pos_embed.token_projection.weight" in spared
    assert "blocks.0.mlp.fc1.weight" not in spared


@pytest.mark.parametrize(("architecture", "arguments"), [("vit_tiny_patch16_224", VIT), ("convnext_tiny", CONVNEXT)])
def test_layer_decay_slows_each_layer_down_by_the_same_factor(architecture: str, arguments: dict[str, Any]) -> None:
    model = random_model(architecture, 0, num_classes=3, **arguments)
    scales = lr_scales(model, 0.5)
    assert scales.keys() == dict(model.named_parameters()).keys()
    if architecture == "convnext_tiny":
        expected = {"stem.0.weight": 13, "stages.0.blocks.1.gamma": 11, "stages.1.downsample.1.weight": 10,
                    "stages.3.blocks.1.mlp.fc2.bias": 1, "head.fc.weight": 0, "head.norm.bias": 0}  # fmt: skip
    else:
        expected = {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.bias": 3, "blocks.0.attn.qkv.weight": 2,
                    "blocks.1.mlp.fc2.bias": 1, "norm.weight": 0, "head.weight": 0}  # fmt: skip
    assert {name: scales[name] for name in expected} == {name: 0.5**depth for name, depth in expected.items()}
    assert lr_scales(model, 1.0) == {}
    groups = parameter_groups(model, 0.05, scales)
    assert sum(len(group["params"]) for group in groups) == len(scales)


def test_each_group_takes_its_own_share_of_the_learning_rate() -> None:
    """The first step of AdamW goes as far as the learning rate, wherever the gradient is not nearly zero."""
    model = small_vit(0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    step = Optimizer({"student": model}, weight_decay=0.0, clip_norm=None, layer_decay=0.5)
    step.set_rate(1e-3)
    step.step(1e3 * model(torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(0))).square().sum())
    moved = {name: (parameter - before[name]).abs().max().item() for name, parameter in model.named_parameters()}
    for name, scale in {"head.weight": 1.0, "blocks.1.mlp.fc2.weight": 0.5, "cls_token": 0.125}.items():
        assert moved[name] == pytest.approx(1e-3 * scale, rel=1e-2), name
