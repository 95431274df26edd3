"""Maps lie where the evidence is, and are those of the published formulas."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp

from helpers.builders import VIT, random_model, small_regnety
from helpers.planted import AREA, NETWORKS, SIZE, TASK, fitted_network, planted, trained_network
from twinbud.core.errors import TwinbudError
from twinbud.explaining.compute import scaled
from twinbud.explaining.deletion import upsampled
from twinbud.explaining.grad_cam import grad_cam
from twinbud.explaining.layers import MapLayer, map_layer
from twinbud.explaining.randomization import MIN_MARGIN, check_weights
from twinbud.explaining.rollout import attention_rollout
from twinbud.explaining.scores import log_odds
from twinbud.tasks.multi_label import MultiLabel
from twinbud.tasks.ordinal import Ordinal
from twinbud.tasks.single import SingleLabel

SEEDS = {"convnext": 1, "efficientnet": 1}
"""Of random features with which the classes can be told apart; 0 for the other networks."""


@functools.cache
def network(family: str) -> Any:
    """Without training, but for EVA: attention has to learn where to look."""
    return trained_network(family) if family == "eva" else fitted_network(family, SEEDS.get(family, 0))


def maps_of(model: Any, images: torch.Tensor, labels: torch.Tensor, *, rectify: bool = True) -> torch.Tensor:
    score = partial(log_odds, TASK, labels_B=labels)
    return scaled(
        grad_cam(model, images, lambda logits: score(logits_BK=logits), map_layer(model, SIZE), rectify=rectify)
    )


def share_in_square(maps_Nhw: torch.Tensor, squares_NSS: torch.Tensor) -> np.ndarray:
    maps = upsampled(maps_Nhw, SIZE)
    return ((maps * squares_NSS).sum((1, 2)) / maps.sum((1, 2)).clamp(min=1e-9)).numpy()


def p_value(shares: np.ndarray) -> float:
    """Of a mean above the share of the square in the image's area."""
    test: Any = ttest_1samp(shares, AREA, alternative="greater")
    return float(test.pvalue)


@pytest.mark.parametrize("family", NETWORKS)
def test_the_map_lies_where_the_class_is_planted(family: str) -> None:
    model, images = network(family), planted(60, seed=1000).visible()
    predicted = model(images.images).argmax(dim=1)
    assert (predicted == images.labels).float().mean() >= 0.7
    shares = share_in_square(maps_of(model, images.images, predicted), images.squares)
    assert p_value(shares) < 0.01, shares.mean()
    check = check_weights(model, images.images, lambda other, x: maps_of(other, x, predicted[: len(x)], rectify=False))
    assert check.likeness < check.stability
    assert check.num_images == 8


def test_attention_comes_from_where_the_class_is_planted() -> None:
    images = planted(60, seed=1000).visible()
    rolled = attention_rollout(network("eva"), images.images)
    assert torch.all(rolled >= 0)
    assert torch.all(rolled.sum((1, 2)) <= 1 + 1e-5)
    shares = share_in_square(scaled(rolled), images.squares)
    assert p_value(shares) < 0.01, shares.mean()


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_grad_cam_is_that_of_the_grad_cam_package(family: str) -> None:
    package = pytest.importorskip("pytorch_grad_cam")
    model, images = network(family), planted(4, seed=1000).images
    layer = map_layer(model, SIZE)
    ours = grad_cam(model, images, lambda logits: logits[:, 2], layer)
    theirs = package.GradCAM(model, [model.get_submodule(layer.name)], reshape_transform=layer.to_map)
    theirs.compute_input_gradient = True  # the weights need none
    theirs.get_target_width_height = lambda _images: ours.shape[1:]  # no resizing
    maps = theirs(input_tensor=images, targets=[lambda logits: logits[2]] * len(images))
    np.testing.assert_allclose(maps, scaled(ours).numpy(), atol=1e-4)


def test_rollout_is_the_product_of_the_attention_of_all_blocks() -> None:
    model, images = random_model("vit_tiny_patch16_224", **VIT, num_classes=2), torch.randn(1, 3, 28, 28)
    expected = torch.eye(17)
    stream = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    for block in model.blocks:
        queries, keys, _ = block.attn.qkv(block.norm1(stream)).view(17, 3, 4, 8).permute(1, 2, 0, 3)
        attention = (queries @ keys.transpose(1, 2) / 8**0.5).softmax(dim=-1).mean(dim=0)
        expected = (0.5 * attention + 0.5 * torch.eye(17)) @ expected
        stream = block(stream)
    assert torch.allclose(attention_rollout(model, images)[0].flatten(), expected[0, 1:], atol=1e-6)
    fused = random_model("vit_tiny_patch16_224", **VIT).blocks[0].attn.fused_attn
    assert all(block.attn.fused_attn == fused for block in model.blocks)


def test_maps_leave_the_network_as_it_was() -> None:
    model, images = network("resnet"), planted(4, seed=0).images
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits = model(images)
    maps = partial(maps_of, labels=torch.zeros(4, dtype=torch.int64))
    check_weights(model, images, lambda other, x: maps(other, x))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(images), logits)
    assert not any(module._forward_hooks for module in model.modules())


def test_maps_that_do_not_depend_on_the_weights_are_refused() -> None:
    def edges(_model: Any, images: torch.Tensor) -> torch.Tensor:
        gray = images.mean(dim=1)
        return (gray.diff(dim=1)[:, :, 1:].abs() + gray.diff(dim=2)[:, 1:].abs())[:, ::4, ::4]

    check = check_weights(network("vit"), planted(8, seed=0).visible().images, edges)
    assert check.likeness == pytest.approx(1.0)
    assert not check.passed
    assert "a map does not depend on the weights" in check.sentence


def test_maps_of_a_trained_network_depend_on_the_weights() -> None:
    model, images = network("vit"), planted(12, seed=0).visible()
    check = check_weights(
        model, images.images, lambda other, x: maps_of(other, x, images.labels[: len(x)], rectify=False)
    )
    assert check.stability - check.likeness >= MIN_MARGIN
    assert check.passed


def test_constant_maps_do_not_pass_as_stable() -> None:
    check = check_weights(network("vit"), planted(4, seed=0).images, lambda _, x: torch.zeros(len(x), 4, 4))
    assert (check.stability, check.likeness, check.problem) == (0.0, 0.0, "changes with invisible noise")


@pytest.mark.parametrize(
    "task", [SingleLabel(("a", "b", "c")), Ordinal(("a", "b", "c")), MultiLabel(("a", "b", "c"))], ids=lambda t: t.name
)
def test_what_is_explained_is_the_log_odds_of_the_label(task: Any) -> None:
    logits = torch.randn(5, task.num_outputs, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probabilities = task.probabilities(logits.numpy())
    for label in range(3):
        found = log_odds(task, logits, torch.full((5,), label)).numpy()
        expected = np.log(probabilities[:, label] / (1 - probabilities[:, label]))
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_network_of_no_known_family_gets_its_last_map() -> None:
    model = small_regnety(num_classes=2).eval().requires_grad_(False)
    layer = map_layer(model, 64)
    assert layer.to_map(model.forward_features(torch.zeros(1, 3, 64, 64))).shape[2:] == (2, 2)
    assert layer.name.startswith("final_conv") or layer.name.startswith("s4")
    assert grad_cam(model, torch.randn(2, 3, 64, 64), lambda logits: logits[:, 0], layer).shape == (2, 2, 2)


def test_a_network_without_a_map_is_refused() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))
    with pytest.raises(TwinbudError, match="the network has no map"):
        map_layer(model, 8)
    with pytest.raises(TwinbudError, match="form no square"):
        MapLayer(name="norm", layout="tokens", num_prefix_tokens=1).to_map(torch.zeros(1, 8, 4))
    with pytest.raises(TwinbudError, match="no two places"):
        MapLayer(name="layer4").to_map(torch.zeros(1, 8, 1, 1))
